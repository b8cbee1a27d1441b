"""`compllm explain` and `ask --explain`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from explain_data import JOIN
from rich.console import Console

from compllm.cli.app import run
from compllm.cli.explain import print_answer
from compllm.lab.explain import explain_run, run_of
from compllm.types import Answer, Bound, NodeResult, Plan, Query, Route, SubQuery, Timings


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(JOIN))
    return path


def test_a_record_is_explained_in_tables(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", str(record)]) == 0
    out = capsys.readouterr().out
    assert "critical path: plan -> 2 -> 3 -> answer" in out
    assert "whole query: 490.0 ms" in out


@pytest.mark.parametrize("width", [40, 50, 60, 80])
def test_a_narrow_terminal_shows_all_columns(width: int) -> None:
    """At 50 columns the names and the times of the nodes were gone."""
    record = json.loads(json.dumps(JOIN))
    record["nodes"][2] |= {"expert": "mathematics", "text": "Which is larger, #1 or #2? " * 3}
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(explain_run(run_of(record)))
    lines = capture.get().splitlines()
    assert all(len(line) <= width for line in lines)
    words = " ".join(capture.get().split())
    for kind in ("host", "queue", "prefill", "decode", "compose", "slack", "share", "saves"):
        assert kind in words
    for shown in ("340.0", "150.0", "34.5%", "*3", "mathematics", "2.0", "5.0", "43.0", "100.0"):
        assert shown in words
    assert "Which is larger" in words.partition("mathematics")[2]
    assert "…" not in words.partition("mathematics")[0]


def test_json_is_one_object(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", str(record), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert list(value) == [
        "query", "total_ms", "critical_path", "critical_nodes", "where_ms", "bound", "what_if",
        "nodes",
    ]  # fmt: skip
    assert value["critical_nodes"] == [2, 3]


def test_standard_input_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(json.dumps(JOIN).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run(["explain", "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total_ms"] == 490


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_a_line_ends_at_a_newline_alone(separator: str, tmp_path: Path) -> None:
    """`replay` writes texts as they are: those of a model may hold what Unicode calls a line's
    end."""
    path = tmp_path / "out.jsonl"
    lines = [json.dumps({**JOIN, "id": f"a{separator}{n}"}, ensure_ascii=False) for n in range(2)]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert run(["explain", str(path), "--id", f"a{separator}1"]) == 0


@pytest.mark.parametrize("is_stdin", [False, True])
def test_of_many_records_one_line_is_limited_and_not_the_file(
    is_stdin: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"
    lines = [json.dumps({**JOIN, "id": f"g{n}", "answer": "x" * 900_000}) + "\n" for n in range(6)]
    path.write_text("".join(lines))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert run(["explain", "-" if is_stdin else str(path), "--id", "g5"]) == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"x" * 4_000_001, "out.jsonl: line 2 has more than 4000000 bytes"),
        (b"\xff", "out.jsonl: line 2 is not UTF-8 text (byte 0)"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(
    line: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(JOIN).encode() + b"\n" + line)
    assert run(["explain", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_chart_and_trace_are_written(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chart, trace = tmp_path / "chart.svg", tmp_path / "trace.json"
    assert run(["explain", str(record), "--gantt", str(chart), "--trace", str(trace)]) == 0
    assert chart.read_bytes().startswith(b"<?xml")
    assert json.loads(trace.read_text())["traceEvents"]
    assert f"wrote {chart}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gantt", "chart.bmp"], "ends in .png or .svg"),
        (["--id", "x"], "no record with the id 'x'"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], said: str, record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", str(record), *arguments]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert said in line
    assert printed.out == ""


def test_a_damaged_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(JOIN)[:-40])
    assert run(["explain", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: not JSON: ")


def test_a_file_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "/nowhere/run.json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot read /nowhere/run.json" in line


ANSWER = Answer(
    Query("q"),
    "x",
    Plan((SubQuery(1, "a?"),)),
    (Route("chemistry", 0.9, is_fallback=False),),
    (NodeResult(1, "chemistry", "done", "x", ready_s=1, start_s=1, first_token_s=2, end_s=3),),
    Timings(1, 0.1, 2, 0.5, 3, 3.5),
    Bound(1, 1),
)


def test_ask_tells_the_report_on_stderr_or_in_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_answer(ANSWER, is_explained=True, is_json=False)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "critical path: plan -> 1 -> answer" in printed.err
    print_answer(ANSWER, is_explained=True, is_json=True)
    value = json.loads(capsys.readouterr().out)
    assert value["explain"]["where_ms"]["decode"] == 1000
    print_answer(ANSWER, is_explained=False, is_json=True)
    assert "explain" not in json.loads(capsys.readouterr().out)
