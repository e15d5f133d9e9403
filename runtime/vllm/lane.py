"""The prefill lane: vLLM's model run beside vLLM's own steps, on a stream of its own.

A pass computes the keys and values of some prompt tokens into KV blocks that the
scheduler has set aside. It shares weights and KV cache with the decode lane and nothing
that is written per step: inputs, block tables, attention-metadata builders and the
workspace are the lane's. Memory that PyTorch hands out belongs to the stream that asked
for it, and so do cuBLAS workspaces. On a CPU, where one forward pass at a time can run,
a pass takes its turn and is finished when it returns.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import AttentionSpec
from vllm.v1.worker import workspace
from vllm.v1.worker.utils import prepare_kernel_block_sizes

from nexus.errors import EngineError
from nexus.runtime.vllm.rows import Row, flatten


@dataclass(frozen=True)
class LanePass:
    """A launched pass: its hidden states ``[tokens, hidden_size]``, ready at ``done``.

    ``done`` is None where the pass was over before it was returned.
    """

    hidden_states: torch.Tensor
    done: torch.cuda.Event | None

    def finished(self) -> bool:
        """Whether the pass is over; does not wait."""
        return self.done is None or bool(self.done.query())

    def wait(self) -> None:
        """Return once the pass is over."""
        if self.done is not None:
            self.done.synchronize()


class PrefillLane:
    """Forward passes over given rows, launched eagerly on one stream."""

    def __init__(self, runner: Any, stream: torch.cuda.Stream | None = None) -> None:
        """``runner`` is the worker's model runner, with its KV cache in place.

        ``stream`` defaults to the current one. Raises EngineError for a model or option
        that the lane cannot serve.
        """
        refuse_unsupported(runner.vllm_config)
        self._runner = runner
        self._config = runner.vllm_config
        self._device: torch.device = runner.device
        self._groups = _own_groups(runner)
        self._block_sizes = [_attention_block_size(group) for group in _cache_groups(runner)]
        self._splits = _kernel_blocks_per_block(runner, self._block_sizes)
        self._workspace = (
            workspace.WorkspaceManager(self._device)
            if workspace.is_workspace_manager_initialized()
            else None
        )
        self.max_tokens = int(self._config.scheduler_config.max_num_batched_tokens)
        self.stream = stream
        if stream is None and self._device.type == "cuda":
            self.stream = torch.cuda.current_stream(self._device)

    def move_to(self, stream: torch.cuda.Stream) -> None:
        """Run later passes on ``stream``, after those already launched; does not wait."""
        if self.stream is not None and self.stream != stream:
            stream.wait_stream(self.stream)
        self.stream = stream

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row], after: torch.cuda.Event | None = None) -> LanePass:
        """Launch one pass over ``rows``, at most ``max_tokens`` tokens in all.

        ``after`` is waited for on the device: pass it with a row's first chunk, recorded
        on the decode lane, since that lane may still use what the row's blocks held.
        """
        assert 0 < sum(len(row.tokens) for row in rows) <= self.max_tokens
        with self._on_stream(), self._own_workspace():
            if after is not None and self.stream is not None:
                self.stream.wait_event(after)
            hidden_states = self._run(rows)
            done = None
            if self.stream is not None:
                done = torch.cuda.Event(enable_timing=True)
                done.record(self.stream)
        return LanePass(hidden_states, done)

    def _run(self, rows: Sequence[Row]) -> torch.Tensor:
        batch = flatten(rows, self._block_sizes, self._splits)
        slots = [self._to_device(group) for group in batch.slots]
        tables = [self._to_device(table) for table in batch.block_tables]
        positions = self._to_device(batch.positions)
        input_ids = self._to_device(batch.input_ids)
        common = {
            "query_start_loc": self._to_device(batch.query_start_loc),
            "query_start_loc_cpu": torch.from_numpy(batch.query_start_loc),
            "seq_lens": self._to_device(batch.seq_lens),
            "seq_lens_cpu_upper_bound": torch.from_numpy(batch.seq_lens),
            "_seq_lens_cpu": torch.from_numpy(batch.seq_lens),
            "_num_computed_tokens_cpu": torch.from_numpy(batch.contexts),
            "num_reqs": len(rows),
            "num_actual_tokens": len(batch.positions),
            "max_query_len": batch.max_query_len,
            "max_seq_len": batch.max_seq_len,
            "causal": True,
            "positions": positions,
            "is_prefilling": torch.ones(len(rows), dtype=torch.bool),
        }
        known = {field.name for field in fields(CommonAttentionMetadata)}
        common = {name: value for name, value in common.items() if name in known}
        metadata: dict[str, Any] = {}
        slots_by_layer: dict[str, torch.Tensor] = {}
        for index, groups in enumerate(self._groups):
            shared = CommonAttentionMetadata(
                **common, block_table_tensor=tables[index], slot_mapping=slots[index]
            )
            for group in groups:
                metadata.update(dict.fromkeys(group.layer_names, _build(group, shared)))
            for name in _cache_groups(self._runner)[index].layer_names:
                slots_by_layer[name] = slots[index]
        with set_forward_context(
            metadata,
            self._config,
            num_tokens=len(batch.positions),
            slot_mapping=slots_by_layer,
        ):
            output = self._runner.model(
                input_ids=input_ids,
                positions=positions,
                intermediate_tensors=None,
                inputs_embeds=None,
            )
        hidden_states: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return hidden_states

    def _to_device(self, array: Any) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    @contextmanager
    def _own_workspace(self) -> Iterator[None]:
        """Lend the lane its own of what vLLM keeps one of: a growing scratch tensor."""
        if self._workspace is None:
            yield
            return
        before = workspace._manager
        workspace._manager = self._workspace
        try:
            yield
        finally:
            workspace._manager = before


def refuse_unsupported(config: Any) -> None:
    """Raise EngineError, naming the option, where passes on a lane would be wrong."""
    parallel, model = config.parallel_config, config.model_config
    checks: list[tuple[Callable[[], Any], str]] = [
        (lambda: parallel.tensor_parallel_size > 1, "--tensor-parallel-size above 1"),
        (lambda: parallel.pipeline_parallel_size > 1, "--pipeline-parallel-size above 1"),
        (lambda: parallel.data_parallel_size > 1, "--data-parallel-size above 1"),
        (
            lambda: getattr(parallel, "decode_context_parallel_size", 1) > 1,
            "--decode-context-parallel-size above 1",
        ),
        (lambda: getattr(parallel, "enable_dbo", False), "--enable-dbo"),
        (lambda: config.speculative_config is not None, "--speculative-config"),
        (lambda: config.lora_config is not None, "--enable-lora"),
        (lambda: model.is_encoder_decoder, "an encoder-decoder model"),
        (lambda: model.is_multimodal_model, "a multimodal model"),
        (lambda: model.uses_mrope, "a model with multi-dimensional positions"),
        (lambda: model.use_mla, "a model with multi-head latent attention"),
        (lambda: model.runner_type != "generate", "a model that does not generate"),
    ]
    for applies, what in checks:
        if applies():
            raise EngineError(f"the prefill lane does not support {what}")


def _cache_groups(runner: Any) -> list[Any]:
    return list(runner.kv_cache_config.kv_cache_groups)


def _attention_block_size(group: Any) -> int:
    if not isinstance(group.kv_cache_spec, AttentionSpec):
        kind = type(group.kv_cache_spec).__name__
        raise EngineError(f"the prefill lane does not support a KV cache of kind {kind}")
    return int(group.kv_cache_spec.block_size)


def _kernel_blocks_per_block(runner: Any, block_sizes: Sequence[int]) -> list[int]:
    sizes = prepare_kernel_block_sizes(runner.kv_cache_config, runner.attn_groups)
    return [block // kernel for block, kernel in zip(block_sizes, sizes, strict=True)]


def _own_groups(runner: Any) -> list[list[Any]]:
    """The runner's attention groups with metadata builders that are the lane's."""
    sizes = prepare_kernel_block_sizes(runner.kv_cache_config, runner.attn_groups)
    copies = [
        [replace(group, metadata_builders=[]) for group in groups] for groups in runner.attn_groups
    ]
    with set_current_vllm_config(runner.vllm_config):
        for groups, size in zip(copies, sizes, strict=True):
            for group in groups:
                group.create_metadata_builders(
                    runner.vllm_config, runner.device, size, num_metadata_builders=1
                )
    return copies


def _build(group: Any, common: CommonAttentionMetadata) -> Any:
    if hasattr(group, "build_metadata"):  # newer releases map block tables here
        return group.build_metadata(common)
    return group.get_metadata_builder(0).build(common_prefix_len=0, common_attn_metadata=common)
