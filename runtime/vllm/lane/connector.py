"""The prefill lane as vLLM sees it: a KV connector whose remote side is this very worker.

To the scheduler, a prompt on the lane is a request whose KV cache is being received: it
holds blocks, is in no batch, and its last token runs as an ordinary step once the worker
says that the rest has arrived.
"""

from typing import Any

from typing_extensions import override

from nexus.runtime.vllm.compat import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorOutput,
    KVConnectorRole,
    get_kv_transfer_group,
    has_kv_transfer_group,
)
from nexus.runtime.vllm.lane.admission import LaneAdmission
from nexus.runtime.vllm.lane.driver import LaneDriver
from nexus.runtime.vllm.lane.step import LaneReport

NAME = "LaneConnector"
MODULE = "nexus.runtime.vllm.lane.connector"


def transfer_config() -> dict[str, Any]:
    """What ``--kv-transfer-config`` is set to.

    As a consumer, vLLM keeps a freed block until no step that may write it is under way.
    """
    return {"kv_connector": NAME, "kv_connector_module_path": MODULE, "kv_role": "kv_consumer"}


class LaneConnector(KVConnectorBase_V1):
    """Both roles; vLLM makes one of each."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        """As vLLM calls it."""
        super().__init__(vllm_config, role, kv_cache_config)
        self.admission = LaneAdmission()
        self.returned: set[str] = set()
        self.lost: set[str] = set()
        self.driver: LaneDriver | None = None
        self._report: LaneReport | None = None

    # The worker's role.

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing: passes are launched after the step."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: no step reads what a pass still writes."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Nothing: the blocks are where they belong."""

    def wait_for_save(self) -> None:
        """Nothing, as above."""

    @override
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Prompts that left the lane; vLLM calls this when its own step is queued."""
        if self.driver is None:
            return None, None
        left, self._report = self.driver.end_step()
        return None, left or None

    def build_connector_worker_meta(self) -> LaneReport | None:
        """The report that belongs to the last ``get_finished``."""
        report, self._report = self._report, None
        return report

    # The scheduler's role.

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """All but the last token of a prompt that goes to the lane; 0 for one that does not."""
        return self.admission.match(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """The request has its blocks."""
        self.admission.allocated(request, blocks.get_block_ids(), num_external_tokens)

    @override
    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """The step's orders to the worker."""
        return self.admission.step()

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Take in what the worker says; ``returned`` and ``lost`` are the scheduler's to take up."""
        report = connector_output.kv_connector_worker_meta
        assert report is None or isinstance(report, LaneReport)
        left = connector_output.finished_recving or set()
        self.returned |= self.admission.reported(report, left)
        if report is not None:
            self.lost |= report.lost

    def look(self) -> KVConnectorOutput | None:
        """What left the lane by now, if its driver is in this process.

        Steps are queued ahead of their results, in which the news would come later.
        """
        if not has_kv_transfer_group():
            return None
        connector = get_kv_transfer_group()
        driver = connector.driver if isinstance(connector, LaneConnector) else None
        if driver is None or not driver.busy:
            return None
        left, report = driver.poll()
        if not left:
            return None
        return KVConnectorOutput(finished_recving=left, kv_connector_worker_meta=report)

    @override
    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """A request ended. vLLM itself keeps the blocks of one that is on the lane."""
        self.admission.finished(request.request_id)
        return False, None
