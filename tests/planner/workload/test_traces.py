"""Traces of every known format are read; what is no trace is one line that names its place."""

import csv
import gzip
import io
import json
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nexus.core.errors import DocumentError, UserError
from nexus.planner.workload.requests import Requests
from nexus.planner.workload.trace_columns import parse_columns
from nexus.planner.workload.traces import read_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
START = datetime(2024, 5, 10, tzinfo=UTC)
ROWS = st.lists(
    st.tuples(
        st.integers(0, 10**9),  # microseconds after the one before
        st.integers(1, 10**6),
        st.integers(1, 10**6),
    ),
    min_size=1,
    max_size=30,
)
TEXTS = [
    {"conversations": [{"from": "human", "value": "a" * 400}, {"from": "gpt", "value": "b" * 40}]},
    {"conversations": [{"from": "human", "value": "a"}]},
]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("traces") / "trace.csv"


def read(path: Path, text: str | bytes, **how) -> Requests:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_trace(path, **how)


def attempt(path: Path, data: str | bytes, **how) -> tuple[Requests | None, str]:
    try:
        return read(path, data, **how), ""
    except DocumentError as error:
        return None, str(error)


def told(path: Path, text: str | bytes, **how) -> tuple[Requests, str]:
    lines: list[str] = []
    requests = read(path, text, say=lines.append, **how)
    (line,) = lines
    assert "\n" not in line
    return requests, line


def table(names: list[str], rows: list[list[object]], delimiter: str = ",") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([names, *rows])
    return out.getvalue()


def as_format(name: str, times_us: list[int], rows: list[tuple[int, int]]) -> str:
    """The requests as a file of the format called ``name``."""
    at = [START + timedelta(microseconds=us) for us in times_us]
    both = list(zip(times_us, at, rows, strict=True))
    if name == "azure-2023":
        names = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
        return table(names, [[f"{t:%Y-%m-%d %H:%M:%S.%f}0", i, o] for _, t, (i, o) in both])
    if name == "azure-2024":
        names = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
        return table(names, [[f"{t:%Y-%m-%d %H:%M:%S.%f}+00:00", i, o] for _, t, (i, o) in both])
    if name == "burstgpt":
        names = [
            "Timestamp",
            "Model",
            "Request tokens",
            "Response tokens",
            "Total tokens",
            "Log Type",
        ]
        return table(names, [[us / 1e6, "GPT-4", i, o, i + o, "log, of"] for us, _, (i, o) in both])
    if name == "zones":
        names = ["generatedtokens", "timestamp", "contexttokens"]
        zones = ["+02:00", "Z", "-0330"]
        hours = [2.0, 0.0, -3.5]
        return table(
            names,
            [
                [o, f"{t + timedelta(hours=hours[n % 3]):%Y-%m-%dT%H:%M:%S.%f}{zones[n % 3]}", i]
                for n, (_, t, (i, o)) in enumerate(both)
            ],
            ";",
        )
    if name == "epoch":
        names = ["time", "input", "output"]
        return table(
            names, [[f"{us / 1e6:.9e}", f"{i:.12e}", float(o)] for us, _, (i, o) in both], "\t"
        )
    if name == "milliseconds":
        names = ["Arrival (ms)", "input_tokens", "output_tokens"]
        return table(names, [[us / 1e3, i, o] for us, _, (i, o) in both])
    if name == "timed_trace":
        lines = [
            {"timestamp": us / 1e6 + 1e-7, "input_length": i, "output_length": o, "hash_ids": [n]}
            for n, (us, _, (i, o)) in enumerate(both)
        ]
        return "\n".join(map(json.dumps, lines)) + "\n"
    assert name == "list"
    return json.dumps(
        [{"arrival_time": t.isoformat(), "input": i, "output": o} for _, t, (i, o) in both],
        indent=1,
    )


FORMATS = (
    *("azure-2023", "azure-2024", "burstgpt", "zones"),
    *("epoch", "milliseconds", "timed_trace", "list"),
)


@given(rows=ROWS, name=st.sampled_from(FORMATS), bom=st.booleans(), packed=st.booleans())
def test_what_is_written_is_read(file, rows, name, bom, packed):
    times_us = np.cumsum([us for us, _, _ in rows]).tolist()
    text = ("\ufeff" if bom else "") + as_format(name, times_us, [row[1:] for row in rows])
    data = gzip.compress(text.encode()) if packed else text.encode()
    requests = read(file, data)
    assert requests.lengths.inputs.tolist() == [i for _, i, _ in rows]
    assert requests.lengths.outputs.tolist() == [o for _, _, o in rows]
    expected = (np.array(times_us) - times_us[0]) / 1e6
    ties = len(set(times_us)) < len(times_us)  # these may be spread
    assert requests.arrivals_s == pytest.approx(expected, abs=1.0 if ties else 2e-6)
    assert (np.diff(requests.arrivals_s) >= 0).all()


PIECES = st.sampled_from(
    [
        *("TIMESTAMP", "ContextTokens", "GeneratedTokens", "timestamp", "input_length", "time"),
        *("output_length", "hash_ids", "conversations", "value", "input", "output", "cached"),
        *("2023-11-16 18:15:46.68", "NaT", "now", "2024", "nan", "inf", "1e999", "-1", "1" * 400),
        *(
            ",",
            ";",
            "\t",
            "\n",
            "\r\n",
            '"',
            "'",
            "{",
            "}",
            "[",
            "]",
            ":",
            "null",
            "true",
            "0",
            "7",
        ),
        *("3.5", "1e3", "\ufeff", "\x00", "é", " ", "[" * 5000),
    ]
)
TRACELIKE = st.one_of(
    st.lists(PIECES, max_size=60).map("".join),
    st.lists(PIECES, max_size=60).map(lambda parts: AZURE + "".join(parts)),
    st.lists(PIECES, max_size=9).map(
        lambda parts: '{"timestamp": 1, "input_length": 2, "output_length": 3}\n' + "".join(parts)
    ),
).map(lambda text: text.encode(errors="replace"))


@settings(max_examples=300)
@given(data=st.one_of(st.binary(max_size=300), TRACELIKE), packed=st.booleans(), rate=st.booleans())
@example(data=b"\x1f\x8b", packed=False, rate=False)
@example(data=gzip.compress(AZURE.encode())[:20], packed=False, rate=False)
@example(data=b'[1, {"conversations": 3}]', packed=False, rate=True)
@example(data=b'{"conversations": [{"value": "a"}, {"value": ""}]}', packed=False, rate=True)
def test_any_bytes_are_requests_or_one_complaint(file, data, packed, rate):
    how = {"rate": 2.0, "tokenizer": "0.25"} if rate else {}
    requests, complaint = attempt(file, gzip.compress(data) if packed else data, **how)
    if requests is None:
        assert str(file) in complaint
        assert "\n" not in complaint
    else:
        assert requests.lengths.inputs.min() >= 1
        assert requests.lengths.outputs.min() >= 1
        assert requests.arrivals_s[0] >= 0
        assert np.isfinite(requests.arrivals_s).all()


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["timestamp", "input_length", "output_length", "hash_ids"]),
            st.one_of(
                st.none(),
                st.booleans(),
                st.integers(),
                st.floats(),
                st.text(max_size=5),
                st.lists(st.one_of(st.integers(), st.floats(), st.none()), max_size=3),
            ),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_json_is_requests_or_one_complaint(file, records):  # fmt: skip
    requests, complaint = attempt(file, "\n".join(map(json.dumps, records)))
    assert requests or f"{file}, line " in complaint or "no request" in complaint


def test_requests_come_in_order_and_empty_ones_not_at_all(file):
    text = "2023-11-16 18:15:50.5,10,2\n\n2023-11-16 18:15:46.0,30,4\n2023-11-16 18:15:47.0,5,0\n"
    requests, line = told(file, AZURE + text)
    assert requests.arrivals_s.tolist() == [0.0, 4.5]
    assert requests.lengths.inputs.tolist() == [30, 10]
    assert requests.lengths.source == "trace.csv"
    assert "Azure, 2 requests in 4.5 s, 20 + 3 tokens on average, 0% of the prompt tokens" in line
    assert "1 without prompt or output left out" in line


@pytest.mark.parametrize("times", [["0", "1", "2"], ["1715299200", "1715299201", "1715299202"]])
def test_whole_numbers_are_seconds(file, times):
    requests = read(file, AZURE + "".join(f"{time},5,5\n" for time in times))
    assert requests.arrivals_s.tolist() == [0.0, 1.0, 2.0]


def test_a_time_zone_is_no_warning(file):
    stamps = ("2024-05-10 00:00:00.000000+00:00", "2024-05-10 02:00:01.500000+02:00")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        requests = read(file, AZURE + "".join(f"{stamp},5,5\n" for stamp in stamps))
    assert requests.arrivals_s.tolist() == [0.0, 1.5]


def test_requests_of_one_second_are_spread_over_it(file):
    text = "Timestamp,Request tokens,Response tokens\n" + "".join(
        f"{second},9,9\n" for second in (5, 5, 5, 5, 6, 8, 8)
    )
    requests, line = told(file, text)
    assert requests.arrivals_s.tolist() == [0, 0.25, 0.5, 0.75, 1, 3, 3.5]
    assert "spread evenly within ticks of 1 s" in line
    fine, line = told(file, text.replace("8,9,9", "8.001,9,9"))
    assert fine.arrivals_s[:4].tolist() == [0.0] * 4
    assert "spread" not in line


def mooncake(rows: list[tuple[int, int, list[int]]]) -> str:
    names = ("timestamp", "input_length", "hash_ids")
    return "".join(
        json.dumps({**dict(zip(names, row, strict=True)), "output_length": 20}) + "\n"
        for row in rows
    )


def test_mooncakes_blocks_are_kept_and_its_ticks_are_spread(file):
    rows = [(3000 * (n // 2), 1500, [0, 1, 10 + n]) for n in range(60)]
    requests, line = told(file, mooncake(rows))
    assert requests.arrivals_s[:4].tolist() == [0.0, 1.5, 3.0, 4.5]
    assert "Mooncake, 60 requests in 88.5 s" in line
    assert "times taken as milliseconds" in line
    assert "within ticks of 3 s" in line
    share = 59 * 1024 / (60 * 1500)
    assert f"{share:.0%} of the prompt tokens in blocks that came before" in line
    assert requests.prefixes is not None
    first, second = requests.window(7, 2).prefixes.keys(np.array([1500, 1500]))  # type: ignore[union-attr]
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert requests.prefixes.size_of(first[2]) == 1500 - 1024


def test_columns_can_say_that_whole_numbers_are_seconds(file):
    rows = [(300 * n, 1500, [n]) for n in range(5)]
    assert read(file, mooncake(rows)).arrivals_s[1] == 300.0  # one id a prompt: a timed_trace
    for name, step_s in (("time", 300.0), ("time_ms", 0.3)):
        requests = read(file, mooncake(rows), columns={name: "timestamp"})
        assert requests.arrivals_s[1] == pytest.approx(step_s)


def test_columns_of_any_name_are_read_by_it(file):
    text = "When;Prompt;Answer;From cache\n0.5;100;7;64\n1.5;100;8;100\n"
    columns = parse_columns("time=when, input=prompt,output=Answer,cached=from cache")
    requests, line = told(file, text, columns=columns)
    assert requests.arrivals_s.tolist() == [0.0, 1.0]
    assert requests.lengths.cached.tolist() == [64, 99]  # the last token is computed in any case
    assert "82% of the prompt tokens cached" in line
    with pytest.raises(DocumentError, match=r"trace.csv, line 1: no column 'size', but 'When'"):
        read(file, text, columns={**columns, "input": "size"})
    with pytest.raises(UserError, match=r"time=…, input=…"):
        parse_columns("when=time")


def test_texts_need_a_rate_and_a_tokenizer(file, tmp_path):
    text = json.dumps(TEXTS)
    for how, missing in (
        ({}, "give nexus plan or simulate --rate and --tokenizer ("),
        ({"rate": 2.0}, "simulate --tokenizer ("),
        ({"tokenizer": "0.25"}, "simulate --rate ("),
    ):
        with pytest.raises(DocumentError, match=missing.replace("(", r"\(")):
            read(file, text, **how)
    requests, line = told(file, text, rate=2.0, tokenizer="0.25")
    assert (requests.lengths.inputs.tolist(), requests.lengths.outputs.tolist()) == ([100], [10])
    assert "ShareGPT, 1 request" in line
    assert "1 conversations of fewer than two turns left out" in line
    assert "tokens by --tokenizer 0.25" in line
    assert "random arrivals at 2 requests/s" in line
    for wrong in ("0", "-3", "nan", str(tmp_path)):
        with pytest.raises(UserError, match="--tokenizer"):
            read(file, text, rate=2.0, tokenizer=wrong)


def test_texts_are_counted_with_a_models_tokenizer(file, tiny_model):
    from tokenizers import Tokenizer

    tokens = len(Tokenizer.from_file(str(tiny_model / "tokenizer.json")).encode("a" * 400))
    requests = read(file, json.dumps(TEXTS), rate=2.0, tokenizer=str(tiny_model))
    assert requests.lengths.inputs.tolist() == [tokens]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no request in it"),
        ("\n  \n", "no request in it"),
        (AZURE, "no request in it"),
        (AZURE + "1,0,5\n", "no request in it"),
        ("\na,b\n1,2\n", r"line 2: not a trace that is known: no time.*'a', 'b'.*--columns"),
        ("5,374,44\n6,396,109\n", "line 1: not a trace"),
        (AZURE + "soon,1,2\n", r"line 2: 'TIMESTAMP' is 'soon'; wanted is a date-time"),
        (AZURE + "NaT,1,2\n", r"line 2: 'TIMESTAMP' is 'NaT'; wanted is a date-time"),
        (AZURE + "2023-11-16 18:15:46,1,2\n2024,1,2\n", "line 3: 'TIMESTAMP' is '2024'"),
        (AZURE + "1,1,2\n2023-11-16 18:15:46,1,2\n", "line 3: .* wanted is a time in seconds"),
        (AZURE + "1715299200000,1,2\n", "line 2: .* milliseconds are --columns time_ms"),
        (AZURE + "1,1,2\n\n2,x,2\n", r"line 4: 'ContextTokens' is 'x'; wanted is a whole number"),
        (AZURE + "1,1,2\n2,7\n", "line 3: 2 columns; wanted is 'GeneratedTokens' in column 3"),
        (AZURE + "1,-5,2\n", "line 2: 'ContextTokens' is '-5'; wanted is a whole number of tokens"),
        (AZURE + "1,5.5,2\n", "line 2: 'ContextTokens' is '5.5'"),
        (AZURE + "1,5,99999999999999999999\n", "line 2: 'GeneratedTokens' is '9999"),
        (AZURE + "1,,2\n", "line 2: 'ContextTokens' is ''"),
        (AZURE + '1,"2\n",2\n', "line 2: "),
        (mooncake([(0, 5, [])]) + '{"timestamp": 1}\n', "line 2: 'input_length' is None"),
        (mooncake([(0, 5, [])]) + "\n{]\n", "line 3: not JSON"),
        (mooncake([(0, 5, []), (1, -2, [])]), "line 2: 'input_length' is -2"),
        (mooncake([(0, 5, []), (1, 10**30, [])]), "line 2: 'input_length' is 1000"),
        (mooncake([(0, 5, []), (1, 5, ["a"])]), "line 2: 'hash_ids' is"),  # type: ignore[list-item]
        ('[{"time": 0, "input": 5, "output": 5},\n7]', "entry 2: 7; wanted is an object"),
        ('[{"time": 0, "input": 5,\n"output" 5}]', "line 2: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
        (b"\xff\xfe\x00\x01", "not a text file"),
        (b"\x1f\x8b\x00", "trace.csv: "),
    ],
)
def test_what_is_no_trace_is_one_line_that_names_its_place(file, text, complaint):
    with pytest.raises(DocumentError, match=complaint) as error:
        read(file, text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(file))


def test_a_missing_trace_is_one_line(tmp_path):
    with pytest.raises(DocumentError, match="No such file"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(DocumentError, match="Is a directory"):
        read_trace(tmp_path)


def test_a_bad_line_far_into_a_long_file_is_found(file):
    lines = [f"{n},{n % 999 + 1},7\n" for n in range(700_000)]
    lines[654_321] = "654321,7,seven\n"
    with pytest.raises(DocumentError, match="line 654323: 'GeneratedTokens' is 'seven'"):
        read(file, AZURE + "".join(lines))
