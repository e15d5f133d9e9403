"""What ``nexus serve`` and the plugin hand to the scheduler and worker inside vLLM's processes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexus.core.errors import EngineError
from nexus.core.prefill.late_share import DEFAULT_LATE_SHARE
from nexus.core.prefill.ranking import DEFAULT_ORDER, PrefillOrder


@dataclass(frozen=True)
class ServeContext:
    """Travels as vLLM's ``additional_config``, whose processes unpickle it.

    ``table`` is the plan's path, ``prefill_order`` how waiting prompts are ordered,
    ``late_share`` what those of them that are late keep of the prefill work,
    ``trace`` the file to trace steps to, ``metrics`` the folder to leave metrics in.
    Requests that cannot begin within ``refuse_late`` times their bound on TTFT are refused.
    """

    table: Path
    prefill_order: PrefillOrder = DEFAULT_ORDER
    late_share: float = DEFAULT_LATE_SHARE
    trace: Path | None = None
    metrics: Path | None = None
    refuse_late: float | None = None

    def compute_hash(self) -> str:
        """What vLLM keys compiled graphs by; a plan changes none of them."""
        return "nexus"

    @classmethod
    def of(cls, vllm_config: Any) -> "ServeContext":
        """The context of a running engine; raises EngineError in one that Nexus did not start."""
        context = vllm_config.additional_config
        if not isinstance(context, cls):
            raise EngineError(
                "Nexus's scheduler and workers have no plan here: start the server with"
                " `nexus serve MODEL --table plan.yaml`, which takes vLLM's options, or any of vLLM's"
                " own with NEXUS_TABLE=plan.yaml"
            )
        return context
