"""The table of features: its page is current, its tests exist, and each refusal is one line."""

import ast
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nexus.core.errors import EngineError
from nexus.runtime.mps.recipes import check_options
from nexus.runtime.vllm.options import parse_serve
from nexus.runtime.vllm.support.features import FEATURES
from nexus.runtime.vllm.support.support import WAYS, Feature, Way, Works
from nexus.runtime.vllm.support.unsupported import refuse_given, refuse_used

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "features.py"))

# What makes vLLM see a feature, where a word or two of the command line do.
GIVEN = {
    "KV connectors": '--kv-transfer-config {"kv_connector":"ExampleConnector","kv_role":"kv_both"}',
    "KV offloading": "--kv-offloading-size 1",
    "sleep mode": "--enable-sleep-mode",
    "a scheduler of one's own": "--scheduler-cls some.Scheduler",
    "vLLM's additional configuration": '--additional-config {"a":1}',
    "a worker of one's own": "--worker-cls some.Worker",
    "prompts in one step whatever their length": "--no-enable-chunked-prefill",
    "hybrid KV cache manager, forced": "--no-disable-hybrid-kv-cache-manager",
    "engines without a front end": "--headless",
}
# By feature, which part of vLLM's configuration is otherwise then.
USED: dict[str, tuple[str, dict[str, Any]]] = {
    "tensor parallel": ("parallel_config", {"tensor_parallel_size": 2}),
    "pipeline parallel": ("parallel_config", {"pipeline_parallel_size": 2}),
    "context parallel in decode": ("parallel_config", {"decode_context_parallel_size": 2}),
    "context parallel in prefill": ("parallel_config", {"prefill_context_parallel_size": 2}),
    "expert parallel": ("parallel_config", {"enable_expert_parallel": True}),
    "data parallel": ("parallel_config", {"data_parallel_size": 2}),
    "dual batch overlap": ("parallel_config", {"enable_dbo": True}),
    "speculative decoding": ("", {"speculative_config": object()}),
    "LoRA": ("", {"lora_config": object()}),
    "quantized KV cache": ("cache_config", {"cache_dtype": "fp8"}),
    "embedding models": ("model_config", {"runner_type": "pooling"}),
    "encoder-decoder models": ("model_config", {"is_encoder_decoder": True}),
    "multimodal models": ("model_config", {"is_multimodal_model": True}),
    "multi-dimensional positions": ("model_config", {"uses_mrope": True}),
    "hybrid models (Mamba, linear attention)": (
        "model_config",
        {"hf_text_config": SimpleNamespace(layer_types=["linear_attention"])},
    ),
    "multi-head latent attention": ("model_config", {"use_mla": True}),
    "chunked local attention": ("model_config", {"attention_chunk_size": 128}),
    "linear biases (ALiBi)": ("model_config", {"uses_alibi": True}),
    "layers that share a KV cache": (
        "model_config",
        {"hf_text_config": SimpleNamespace(num_kv_shared_layers=1)},
    ),
    "attention that is not causal": ("model_config", {"attn_type": "encoder_only"}),
    "priorities": ("scheduler_config", {"policy": "priority"}),
}


def named(feature: Feature) -> str:
    return feature.name


class Changed:
    """Part of a real configuration, otherwise in a few places, which may be properties."""

    def __init__(self, real: Any, **changes: Any) -> None:
        self._real, self._changes = real, changes

    def __getattr__(self, name: str) -> Any:
        return self._changes[name] if name in self._changes else getattr(self._real, name)


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> Any:
    """vLLM's own, of a plain model and no options."""
    from vllm.engine.arg_utils import EngineArgs

    sizes: dict[str, Any] = {"max_model_len": 512, "kv_cache_memory_bytes": 1 << 26}
    return EngineArgs(model=str(tiny_model), **sizes).create_engine_config()


def with_feature(config: Any, name: str) -> Any:
    part, changes = USED[name]
    if not part:
        return Changed(config, **changes)
    return Changed(config, **{part: Changed(getattr(config, part), **changes)})


def test_the_page_is_current() -> None:
    assert SCRIPT["PAGE"].read_text() == SCRIPT["page"](), "run: python scripts/features.py"


@pytest.mark.parametrize("feature", FEATURES, ids=named)
def test_what_works_has_a_test(feature: Feature) -> None:
    for way in WAYS:
        support = getattr(feature, way)
        if not isinstance(support, Works):
            continue
        path, _, name = support.test.partition("::")
        tree = ast.parse((ROOT / "tests" / path).read_text())
        names = [each.name for each in tree.body if isinstance(each, ast.FunctionDef)]
        assert any(each.startswith(name or "test_") for each in names), support.test


@pytest.mark.parametrize("feature", FEATURES, ids=named)
def test_what_is_refused_can_be_seen(feature: Feature) -> None:
    assert not (feature.is_refused("fused") or feature.is_refused("lane")) or (
        feature.given or feature.used
    )
    assert not feature.is_refused("mps") or feature.options
    assert feature.is_refused("lane") or not feature.is_refused("fused")
    assert (feature.name in GIVEN) == (feature.given is not None)
    assert (feature.name in USED) == (feature.used is not None)


@pytest.mark.parametrize("way", ["fused", "lane"])
@pytest.mark.parametrize("name", GIVEN)
def test_an_option_that_is_not_served_is_refused_in_one_line(name: str, way: Way) -> None:
    words = GIVEN[name].split(" ", 1)
    (feature,) = [each for each in FEATURES if each.name == name]
    refuse_given(parse_serve("m", []), way, "the plan")
    arguments = parse_serve("m", words)
    if not feature.is_refused(way):
        refuse_given(arguments, way, "the plan")
        return
    with pytest.raises(
        EngineError, match=r"^--[a-z-]+ cannot be combined with the plan$"
    ) as caught:
        refuse_given(arguments, way, "the plan")
    assert words[0] in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("way", ["fused", "lane"])
@pytest.mark.parametrize("name", USED)
def test_a_configuration_that_is_not_served_is_refused_in_one_line(
    config: Any, name: str, way: Way
) -> None:
    (feature,) = [each for each in FEATURES if each.name == name]
    refuse_used(config, way)
    if not feature.is_refused(way):
        refuse_used(with_feature(config, name), way)
        return
    with pytest.raises(EngineError, match=f"^{WAYS[way]} does not support .+$") as caught:
        refuse_used(with_feature(config, name), way)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("option", sorted({option for each in FEATURES for option in each.options}))
def test_options_are_vllm_s_and_refused_by_mps_where_the_table_says_so(option: str) -> None:
    from nexus.runtime.vllm.options import _parsers

    _, serve, _ = _parsers()
    assert option in serve._option_string_actions
    refused = any(each.is_refused("mps") for each in FEATURES if option in each.options)
    if refused:
        with pytest.raises(EngineError, match=f"^{option} cannot be combined with"):
            check_options([option, "2"])
    else:
        check_options([option, "2"])
