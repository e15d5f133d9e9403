"""Profiles on disk: nothing is lost, and whatever is wrong is one line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.core.errors import DocumentError
from nexus.core.io.documents import Provenance, dump_document, parse_document
from nexus.core.io.plain_yaml import PlainYamlError, load
from nexus.core.machine import PARALLEL_SIZES, Engine, Machine, Model
from nexus.core.plan import read_plan
from nexus.profiles.schema import (
    PROFILE_SCHEMA,
    KernelSample,
    Profile,
    Sample,
    SampleMode,
    read_profile,
    training_samples,
    write_profile,
)
from nexus.profiles.shipped import shipped_profiles

text = st.text(max_size=20)
count = st.integers(1, 1 << 20)
ms = st.floats(min_value=1e-6, max_value=1e9, allow_nan=False)
maybe_ms = st.none() | ms


@st.composite
def samples(draw: st.DrawFn, sms: int = 132) -> Sample:
    mode: SampleMode = draw(st.sampled_from(get_args(SampleMode)))
    prefill, decode = mode != "decode", mode != "prefill"
    error = draw(st.none() | text)
    timed = error is None
    return Sample(
        mode=mode,
        prefill_sms=draw(st.integers(1, sms)) if prefill else 0,
        decode_sms=draw(st.integers(1, sms)) if decode else 0,
        chunk=draw(count) if prefill else 0,
        prefill_context=draw(st.integers(0, 1 << 20)),
        decode_batch=draw(count) if decode else 0,
        decode_context=draw(st.integers(0, 1 << 20)),
        prefill_ms=draw(ms) if prefill and timed else None,
        decode_ms=draw(ms) if decode and timed else None,
        prefill_p95_ms=draw(maybe_ms),
        repeats=draw(st.integers(0, 99)),
        held_out=draw(st.booleans()),
        power_w=draw(st.none() | st.floats(0, 1e4)),
        error=error,
    )


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    return Profile(
        provenance=Provenance(draw(text), draw(text), draw(st.dictionaries(text, text))),
        machine=Machine("cuda", draw(text), 132, driver=draw(st.none() | text)),
        model=Model(draw(text), draw(text), draw(text), 32, 4096, 32, 8, 128, draw(count)),
        engine=Engine(
            *(draw(count), draw(count), 16, draw(count), draw(st.booleans())),
            *(draw(st.sampled_from([1, 2, 8])) for _ in PARALLEL_SIZES),
        ),
        samples=tuple(draw(st.lists(samples(), max_size=5))),
        kernels=tuple(
            draw(
                st.lists(
                    st.builds(
                        KernelSample,
                        phase=st.just("prefill"),
                        sms=st.integers(1, 132),
                        chunk=count,
                        context=count,
                        batch=count,
                        kernel_class=st.sampled_from(["gemm", "attention"]),
                        count=count,
                        ms=ms,
                    ),
                    max_size=3,
                )
            )
        ),
    )


@given(profiles())
def test_writing_and_reading_lose_nothing(profile: Profile) -> None:
    written = dump_document(profile, PROFILE_SCHEMA)
    again = parse_document(written, Profile, PROFILE_SCHEMA, "text")
    assert again == profile
    assert dump_document(again, PROFILE_SCHEMA) == written
    assert again.hash == profile.hash


def test_a_document_says_parallel_sizes_where_there_are_any(tmp_path: Path) -> None:
    text = dump_document(GOOD, PROFILE_SCHEMA)
    assert "parallel" not in text
    two = replace(GOOD, engine=replace(GOOD.engine, tensor_parallel_size=2))
    assert dump_document(two, PROFILE_SCHEMA) == text.replace(
        "enforce_eager: false\n", "enforce_eager: false\n  tensor_parallel_size: 2\n"
    )
    for path in (*shipped_profiles(), *shipped_profiles("mps")):
        shipped = read_profile(path)
        assert set(shipped.engine.parallel.values()) == {1}
        assert dump_document(shipped, PROFILE_SCHEMA) == path.read_text()


@given(st.text())
def test_any_other_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_document(text, Profile, PROFILE_SCHEMA, "it")
    assert str(caught.value).startswith("it: ")


GOOD = Profile(
    provenance=Provenance("2026-01-01", "nexus profile", {"torch": "2"}),
    machine=Machine("cpu", "a CPU", 2),
    model=Model("m", "0" * 16, "float32", 2, 64, 2, 1, 32, 4096),
    engine=Engine(2048, 64, 128, 100_000),
    samples=(
        Sample("prefill", 2, 0, chunk=16, prefill_ms=3.5),
        Sample("decode", 0, 2, decode_batch=4, decode_context=128, decode_ms=2.5, held_out=True),
    ),
)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("schema: nexus.profile/1", "schema: nexus.profile/9", "schema is 'nexus.profile/9'"),
        ("schema: nexus.profile/1\n", "", "schema is None"),
        ("prefill_ms: 3.5", "prefill_ms: .nan", "samples.0.prefill_ms"),
        ("prefill_ms: 3.5", "prefill_ms: -1", "samples.0.prefill_ms"),
        ("prefill_ms: 3.5", "prefill_ms: soon", "samples.0.prefill_ms"),
        ("prefill_ms: 3.5, ", "", "prefill_ms disagree"),
        ("chunk: 16", "chunk: 16.5", "samples.0.chunk"),
        ("chunk: 16", "chunk: yes", "samples.0.chunk"),
        ("mode: prefill, ", "", "samples.0.mode: Field required"),
        ("mode: prefill", "mode: guess", "samples.0.mode"),
        ("sms: 2\n", "sms: 1\n", "more than the machine's 1 SMs"),
        ("sms: 2\n", "sms: 2\n  colour: red\n", "machine.colour"),
        ("samples:", "samples: [", "not YAML"),
        ("sms: 2\n", "sms: 2\n  sms: 4\n", "'sms' is there twice (line"),
        ("sms: 2\n", "sms: 2\n  9: 4\n", "a key that is not text (line"),
        ("sms: 2\n", "sms: &cores 2\n", "anchors and aliases are not supported (line"),
        ("sms: 2\n", "sms: !!int '2'\n", "tags are not supported (line"),
        ("chunk: 16", "chunk: 18446744073709551616", "beyond 64 bits (line"),
        ("chunk: 16", "chunk: 0x" + "f" * 5000, "a number too long (line"),
        ("chunk: 16", "chunk: 1" + ":59" * 5000, "a number too long (line"),
        ("chunk: 16", "chunk: " + "[" * 5000, "more than 16 levels (line"),
        ("samples:", "? " * 5000 + "\nsamples:", "more than 16 levels (line"),
        ("schema: nexus.profile/1", "schema: {a: " + "x" * 5000 + "}", "schema is {'a': 'xxx"),
        ("sms: 2\n", f"sms: 2\n  {'x' * 500}: 1\n", "machine.xxx"),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "profile.yaml"
    text = dump_document(GOOD, PROFILE_SCHEMA)
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DocumentError) as caught:
        read_profile(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


LAUGHS = "a: &a0 lol\n" + "".join(
    f"b{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize("text", [LAUGHS, "a: &a [*a]", "[" * 100_000, "- " * 100_000])
@pytest.mark.parametrize("read", [read_profile, read_plan])
def test_what_would_grow_without_end_is_refused(
    tmp_path: Path, text: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "document.yaml"
    path.write_text(text)
    with pytest.raises(DocumentError, match=r"anchors and aliases are not|more than 16 levels"):
        read(path)


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(DocumentError, match="/dev/zero: more than 32 MiB"):
        read_profile(Path("/dev/zero"))


PIECES = (
    *("a", "b: ", "- ", "? ", "[", "]", "{", "}", ", ", ": ", "\n", "\n  ", "#", "---\n", "|\n"),
    *("'", '"', "&a ", "*a", "!!int ", "1", "0x1f", "1_0", "1:30", ".nan", "-.inf"),
    *("1.5", "yes", "~", "0b", "1e9"),
)


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_what_is_read_is_what_the_library_reads(text: str) -> None:
    try:
        found = load(text)
    except PlainYamlError:
        return
    assert repr(found) == repr(yaml.load(text, Loader=yaml.CSafeLoader))


def test_a_date_stays_text() -> None:
    assert load("created: 2026-01-01") == {"created": "2026-01-01"}


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="No such file"):
        read_profile(tmp_path / "none.yaml")
    with pytest.raises(DocumentError, match="Is a directory"):
        read_profile(tmp_path)


def test_one_sample_one_line(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    write_profile(path, GOOD)
    rows = [line for line in path.read_text().splitlines() if line.startswith("- {mode: ")]
    assert len(rows) == 2
    assert read_profile(path) == GOOD


def test_held_out_and_failed_samples_are_not_fitted_to() -> None:
    failed = Sample("prefill", 2, 0, chunk=8, error="out of memory")
    assert training_samples([*GOOD.samples, failed]) == [GOOD.samples[0]]
