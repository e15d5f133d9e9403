"""What a document was made for is what it is used with, or one line says what is wrong."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from nexus.core.errors import EngineError, MismatchError
from nexus.core.machine import Machine
from nexus.profiles.schema import read_profile
from nexus.profiles.shipped import profile_of, shipped_profiles
from nexus.runtime.machine import (
    check_data_type,
    check_machine,
    check_model,
    check_parallel,
    check_software,
    config_hash,
    is_tested,
    software,
    this_machine,
    vllm_version,
)

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 512,
}


def model(folder: Path, **config: object) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **SHAPE, **config}))
    return str(folder)


def test_a_model_is_known_by_its_shape(tmp_path: Path) -> None:
    plain = config_hash(model(tmp_path / "a"))
    assert config_hash(model(tmp_path / "b", bos_token_id=7, torch_dtype="float16")) == plain
    assert config_hash(model(tmp_path / "c", head_dim=32, tie_word_embeddings=False)) == plain
    assert config_hash(model(tmp_path / "d", head_dim=64)) != plain
    assert config_hash(model(tmp_path / "e", hidden_size=128)) != plain


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache on disk, with two revisions of acme/tiny; the hub cannot be reached."""
    cache = tmp_path / "hub"
    repository = cache / "models--acme--tiny"
    for name, layers in (("main", 2), ("large", 4)):
        commit = name[0] * 40
        (repository / "snapshots" / commit).parent.mkdir(parents=True, exist_ok=True)
        model(repository / "snapshots" / commit, num_hidden_layers=layers)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def test_a_hub_id_is_a_model(hub_cache: Path, tmp_path: Path) -> None:
    small = config_hash(model(tmp_path / "small"))
    large = config_hash(model(tmp_path / "large", num_hidden_layers=4))
    assert small != large
    assert config_hash("acme/tiny") == small
    for options, wanted in (
        (Namespace(revision="large"), large),
        (Namespace(revision=None, hf_overrides={"num_hidden_layers": 4}), large),
        (Namespace(hf_config_path=str(tmp_path / "large")), large),
        (Namespace(revision="main", hf_overrides={}, hf_config_path=None), small),
    ):
        assert config_hash("acme/tiny", options) == wanted
    for name, revision in (("acme/none", None), ("acme/tiny", "none"), ("acme/tiny/none", None)):
        with pytest.raises(EngineError, match=f"no such model: {name} ") as told:
            config_hash(name, Namespace(revision=revision))
        assert "\n" not in str(told.value)


def test_what_is_no_model_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in (str(tmp_path / "empty"), str(tmp_path / "none"), "no-such-org/no-such-model"):
        with pytest.raises(EngineError, match="no such model"):
            config_hash(name)


def test_another_machine_or_model_is_refused(tmp_path: Path) -> None:
    here = this_machine()
    check_machine(here, here, "plan.yaml")
    for other in (
        replace(here, name="another"),
        replace(here, sms=here.sms + 1),
        Machine("cuda", here.name, here.sms),
    ):
        with pytest.raises(MismatchError, match=r"plan.yaml was made for .*--force"):
            check_machine(other, here, "plan.yaml")
    profile = read_profile(shipped_profiles()[0])
    with pytest.raises(MismatchError, match=r"made for .*llama.*--force"):
        check_model(profile.model, model(tmp_path / "a"), "plan.yaml")


def test_step_times_of_other_software_are_refused() -> None:
    here = software()
    check_software(here, "plan.yaml")
    check_software({}, "plan.yaml")
    check_software({**here, "torch": f"{here['torch'].split('+')[0]}+other", "python": "3"}, "p")
    with pytest.raises(MismatchError, match=r"plan.yaml was measured with vllm 0.1.0,.*--force"):
        check_software({**here, "vllm": "0.1.0"}, "plan.yaml")


def test_other_parallel_sizes_are_refused() -> None:
    engine = read_profile(shipped_profiles()[0]).engine
    for options in (Namespace(), Namespace(tensor_parallel_size=1, data_parallel_size=8)):
        check_parallel(engine, options, "plan.yaml")
    two = replace(engine, tensor_parallel_size=2)
    check_parallel(two, Namespace(tensor_parallel_size=2), "plan.yaml")
    for made, here, told in (
        (engine, 2, r"plan.yaml was made for --tensor-parallel-size 1, not 2.*--force"),
        (two, 1, r"plan.yaml was made for --tensor-parallel-size 2, not 1.*--force"),
    ):
        with pytest.raises(MismatchError, match=told):
            check_parallel(made, Namespace(tensor_parallel_size=here), "plan.yaml")
    with pytest.raises(MismatchError, match="--pipeline-parallel-size 1, not 4"):
        check_parallel(engine, Namespace(pipeline_parallel_size=4), "plan.yaml")


def test_another_data_type_is_refused() -> None:
    model = read_profile(shipped_profiles()[0]).model
    check_data_type(model, "torch.bfloat16", "the plan")
    with pytest.raises(MismatchError, match=r"the plan was made for bfloat16,.* in float32"):
        check_data_type(model, "torch.float32", "the plan")


def test_shipped_profiles_are_whole_and_of_their_shapes() -> None:
    root = Path(__file__).parents[2]
    names = [path.stem for path in shipped_profiles()]
    assert names == ["llama-3.1-8b", "qwen2.5-14b", "qwen2.5-3b"]
    for path in shipped_profiles():
        profile = read_profile(path)
        assert profile.model.config_hash == config_hash(str(root / profile.model.name))
        modes = {sample.mode for sample in profile.measured}
        assert modes == {"prefill", "decode", "fused", "split", "overlap"}
        assert any(sample.held_out for sample in profile.samples)
        assert {kernel.phase for kernel in profile.kernels} == {"prefill", "decode"}
    if this_machine().device == "cpu":
        assert profile_of(this_machine()) is None


def test_the_installed_vllm_is_a_tested_one() -> None:
    assert is_tested(vllm_version())
    assert is_tested("0.26.0+cu130")
    assert not is_tested("0.1.0")
