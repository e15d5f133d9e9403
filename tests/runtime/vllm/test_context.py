"""What the scheduler and worker are handed."""

from pathlib import Path

import pytest
from vllm.config import VllmConfig

from nexus.core.errors import EngineError
from nexus.runtime.vllm.context import ServeContext


def test_an_engine_that_nexus_did_not_start_is_told_how_to() -> None:
    config = VllmConfig()
    with pytest.raises(EngineError, match=r"`nexus serve MODEL --table plan\.yaml`") as caught:
        ServeContext.of(config)
    assert "\n" not in str(caught.value)
    config.additional_config = ServeContext(Path("plan.yaml"))
    assert ServeContext.of(config).table == Path("plan.yaml")
