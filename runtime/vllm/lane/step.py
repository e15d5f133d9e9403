"""What travels with each step between the scheduler's and the worker's half of the lane."""

from dataclasses import dataclass, field

from nexus.core.plan import Mode
from nexus.runtime.vllm.compat import KVConnectorMetadata, KVConnectorWorkerMetadata
from nexus.runtime.vllm.lane.queue import LanePrompt


@dataclass
class LaneStep(KVConnectorMetadata):
    """Scheduler to worker: the mode of the step, new prompts, and requests that were aborted."""

    mode: Mode
    new: list[LanePrompt] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)


@dataclass
class LaneReport(KVConnectorWorkerMetadata):
    """Worker to scheduler, since the last report.

    ``launched``: of prompts on the lane, how many tokens were launched in all; ``tokens``:
    how many just now; ``returned``: of prompts that the lane gave up, how many tokens are
    in the KV cache; ``failed``: those of them whose launch failed; ``lost``: those in a
    pass that does not end, after which nothing more runs on the lane. ``sms``: what prefill
    and decode had in the step, None where the lane was idle.
    """

    launched: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    returned: dict[str, int] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    sms: tuple[int, int] | None = None

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "LaneReport":
        """One worker has nothing to add up."""
        raise NotImplementedError("the prefill lane has one worker")
