"""`compllm route`, with the real encoder and the shipped routers."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compllm.cli.app import run

IRON = "How many protons does one atom of iron contain?"
SUM = "What is 12 plus 30?"
LISA = "Who painted the Mona Lisa?"

pytestmark = pytest.mark.usefixtures("loaded_encoder")


def write(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def route(*arguments: object) -> int:
    return run(["route", *map(str, arguments)])


def test_one_question_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert route(IRON) == 0
    out = capsys.readouterr().out
    assert out.split()[:4] == ["expert", "similarity", "floor", "router"]
    assert "chemistry" in out


def test_a_line_in_is_a_line_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(
        tmp_path / "q.jsonl", {"question": IRON, "id": 7}, "", {"question": SUM}, {"question": LISA}
    )
    assert route("--questions", source, "--json", tmp_path / "out.jsonl") == 0
    records = read(tmp_path / "out.jsonl")
    assert [record["expert"] for record in records] == ["chemistry", "mathematics", "base"]
    assert [record["is_fallback"] for record in records] == [False, False, True]
    assert records[0]["id"] == 7
    assert records[0]["similarity"] > records[2]["similarity"]
    assert "3 questions routed, 1 to the base" in capsys.readouterr().err


def test_without_an_output_lines_go_to_stdout(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert route("--questions", write(tmp_path / "q.jsonl", {"question": SUM})) == 0
    assert json.loads(capsysbinary.readouterr().out)["expert"] == "mathematics"


def test_standard_input_is_a_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = json.dumps({"question": SUM}) + "\n" + json.dumps({"question": IRON})
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert route("--questions", "-", "--json", tmp_path / "out.jsonl") == 0
    assert len(read(tmp_path / "out.jsonl")) == 2


def test_no_output_line_looks_like_two_to_a_reader_of_other_line_ends(tmp_path: Path) -> None:
    text = "\x85\u2028\u2029é".join(SUM)
    source, out = write(tmp_path / "q.jsonl", {"question": text}), tmp_path / "out.jsonl"
    assert route("--questions", source, "--json", out) == 0
    (line,) = out.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["question"] == text
    assert "é" in line


@pytest.mark.parametrize("router", ["default", "logistic", "similarity", "examples"])
def test_every_router_can_be_named(tmp_path: Path, router: str) -> None:
    out = tmp_path / "out.jsonl"
    source = write(tmp_path / "q.jsonl", {"question": IRON}, {"question": SUM})
    assert route("--questions", source, "--router", router, "--json", out) == 0
    assert [record["expert"] for record in read(out)] == ["chemistry", "mathematics"]


def test_an_unknown_router_tells_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert route(IRON, "--router", "best") == 2
    assert "no router 'best': there are logistic, similarity" in capsys.readouterr().err


def test_another_floor_changes_who_falls_back(tmp_path: Path) -> None:
    source = write(tmp_path / "q.jsonl", {"question": IRON}, {"question": LISA})
    for floor, expected in ((-1, [False, False]), (1, [True, True])):
        out = tmp_path / f"{floor}.jsonl"
        assert route("--questions", source, "--floor", floor, "--json", out) == 0
        assert [record["is_fallback"] for record in read(out)] == expected


def test_a_stopped_run_goes_on_behind_its_last_whole_line(tmp_path: Path) -> None:
    questions = [{"question": f"What is {number} plus 3?"} for number in range(150)]
    source, out = write(tmp_path / "q.jsonl", *questions), tmp_path / "out.jsonl"
    assert route("--questions", source, "--json", out) == 0
    whole, text = read(out), out.read_text()
    out.write_text(text[: len(text) // 2])
    for _ in range(2):
        assert route("--questions", source, "--json", out) == 0
        found = read(out)
        assert [record["question"] for record in found] == [each["question"] for each in questions]
        # The last digits of a vector depend on what it was computed beside.
        expected = [record["similarity"] for record in whole]
        assert [record["similarity"] for record in found] == pytest.approx(expected, abs=1e-5)


def test_an_output_of_other_questions_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert route("--questions", write(tmp_path / "a.jsonl", {"question": IRON}), "--json", out) == 0
    before = out.read_text()
    assert route("--questions", write(tmp_path / "b.jsonl", {"question": SUM}), "--json", out) == 2
    assert "it belongs to other questions, name another file" in capsys.readouterr().err
    assert out.read_text() == before


@pytest.mark.parametrize("end", ["", "\n"])
def test_the_file_of_questions_is_no_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    """Once the last line was cut away as one that a stopped run had begun."""
    source = tmp_path / "q.jsonl"
    before = "\n".join(json.dumps({"question": text}) for text in (IRON, SUM)) + end
    source.write_text(before)
    (tmp_path / "link.jsonl").symlink_to(source)
    assert route("--questions", source, "--json", tmp_path / "link.jsonl") == 2
    assert "is the file of questions itself: name another file" in capsys.readouterr().err
    assert source.read_text() == before


def test_standard_input_and_output_may_not_be_one_file(tmp_path: Path) -> None:
    source = write(tmp_path / "q.jsonl", {"question": IRON})
    before = source.read_text()
    command = [sys.executable, "-m", "compllm", "route", "--questions"]
    with source.open("rb") as read, source.open("ab") as written:
        for arguments in (["-"], ["-", "--json", str(source)], [str(source)]):
            stdout = subprocess.DEVNULL if "--json" in arguments else written
            done = subprocess.run([*command, *arguments], stdin=read, stdout=stdout, check=False)
            assert done.returncode == 2
    assert source.read_text() == before


@pytest.mark.parametrize(
    "content",
    [
        "a note to myself",
        json.dumps({"question": IRON}),
        json.dumps({"question": IRON, "id": 7, "steps": [IRON]}),
        json.dumps({"question": SUM, "id": 7, "expert": "mathematics"}),
        json.dumps({"question": IRON, "id": 7}) + "\n" + '{"question',
    ],
)
def test_what_is_no_broken_off_output_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    source, out = write(tmp_path / "q.jsonl", {"question": IRON, "id": 7}), tmp_path / "out.jsonl"
    out.write_text(content)
    assert route("--questions", source, "--json", out) == 2
    assert "name another file" in capsys.readouterr().err
    assert out.read_text() == content


@pytest.mark.parametrize("keys", [{"id": 7}, {"is_fallback": None, "id": 7}])
@pytest.mark.parametrize("num_bytes", [1, 15, -40, -1])
def test_a_first_line_that_broke_off_anywhere_is_written_anew(
    tmp_path: Path, keys: dict[str, Any], num_bytes: int
) -> None:
    source = write(tmp_path / "q.jsonl", {"question": IRON, **keys}, {"question": SUM})
    out = tmp_path / "out.jsonl"
    assert route("--questions", source, "--json", out) == 0
    whole = out.read_text()
    out.write_text(whole.splitlines(keepends=True)[0][:num_bytes])
    assert route("--questions", source, "--json", out) == 0
    assert [record["question"] for record in read(out)] == [IRON, SUM]
    assert out.read_text() == whole


def test_an_output_of_another_router_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "a.jsonl", {"question": IRON}), tmp_path / "out.jsonl"
    assert route("--questions", source, "--router", "similarity", "--json", out) == 0
    assert route("--questions", source, "--router", "logistic", "--json", out) == 2
    assert "it is another router's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 has no question"),
        ('{"question": " "}', "line 2 has no question"),
        ('{"question": 3}', "line 2 has no question"),
        ('{"question": "\\ud800"}', "line 2 is not text"),
        ('{"question": "x", "score": NaN}', "line 2 is not JSON (NaN is no number there)"),
        ('{"question": "x", "score": -Infinity}', "line 2 is not JSON (-Infinity is no number"),
        ('{"question": "x", "scores": [-1e400]}', "line 2 is not JSON (-1e400 is more than"),
        ("[" * 100_000, "line 2 is not JSON"),
    ],
)
def test_bad_lines_are_named_before_anything_is_routed(
    tmp_path: Path, line: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    source = write(tmp_path / "q.jsonl", {"question": SUM}, line, {"question": IRON})
    assert route("--questions", source, "--json", out) == 2
    assert says in capsys.readouterr().err
    assert not out.exists()


def test_what_came_before_a_bad_line_of_standard_input_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"question": "What is 2 plus 3?"}\n{\n'))
    )
    assert route("--questions", "-", "--json", tmp_path / "out.jsonl") == 2
    assert len(read(tmp_path / "out.jsonl")) == 1


@pytest.mark.parametrize(
    "arguments", [(), (IRON, "--questions", "q.jsonl"), ("  ",), ("--questions", "gone.jsonl")]
)
def test_no_question_or_two_kinds_are_refused(arguments: tuple[str, ...]) -> None:
    assert route(*arguments) == 2
