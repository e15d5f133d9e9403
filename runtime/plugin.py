"""vLLM's general plugin: with ``NEXUS_TABLE=plan.yaml`` any of its servers serves the plan.

vLLM calls ``register`` in each of its processes, those of users without a plan included:
nothing but ``os`` is imported before the variable is seen.
"""

import os

TABLE = "NEXUS_TABLE"


def register() -> None:
    """Have vLLM apply the plan that ``NEXUS_TABLE`` names; without it, do nothing."""
    if os.environ.get(TABLE):
        from nexus.runtime.vllm.front_end.plugin import install

        install()
