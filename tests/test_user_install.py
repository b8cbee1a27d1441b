"""What `.ci/user_install.py` takes from a page, and what it lets pass; it runs nothing here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("user_install", ROOT / ".ci" / "user_install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_install"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


PAGE = """# Page

Text with `compllm ask` in it, which is no command.

    make demo
    pip install '.[embedded]'   # the line

    compllm ask "What is 1 # 2?"      # -> first
    compllm ask "And two?"
    # -> second
    # a remark
    compllm ask --json "..."   # as an object
    compllm ask --json "..." > run.json && compllm explain run.json
    compllm down

In Python:

    import compllm

    print(compllm.ask("Why?"))
    # -> because

```
curl -s localhost:8000/x \\
  -d '{"text_input": "What?"}'
# -> joined text
```

    engines/               a table, no command
"""


def test_commands_questions_and_answers_are_found(script: ModuleType) -> None:
    found = script.steps(PAGE)
    assert [(each.words[:2] if each.kind == "shell" else [], each.answers) for each in found] == [
        (["pip", "install"], ()),
        (["compllm", "ask"], ("first",)),
        (["compllm", "ask"], ("second",)),
        (["compllm", "ask"], ()),
        (["compllm", "ask"], ()),
        (["compllm", "down"], ()),
        ([], ("because",)),
        (["curl", "-s"], ("joined text",)),
    ]
    is_question = [each.is_question for each in found]
    assert is_question == [False, True, True, False, False, False, True, True]
    assert found[6].text.startswith('import compllm\n\nprint(compllm.ask("Why?"))\n')
    assert not script.unanswered(found)


def test_placeholder_is_the_question_before_it(script: ModuleType) -> None:
    shown, redirected = script.filled(script.steps(PAGE))[3:5]
    assert (shown.words[-1], shown.answers) == ("And two?", ("second",))
    assert redirected.words[3] == "And two?"
    assert redirected.answers == ()  # its output is in a file


@pytest.mark.parametrize("answer", ["      # -> first", "    # -> second\n", "    # -> because\n"])
def test_question_without_a_printed_answer_is_named(script: ModuleType, answer: str) -> None:
    (line,) = script.unanswered(script.steps(PAGE.replace(answer, "")))
    assert line.startswith("line ")


def test_page_without_an_answer_fails_before_anything_is_installed(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text('Ask:\n\n    compllm ask "Why?"\n')
    assert script.main(["--readme", str(page)])
    assert capsys.readouterr().out == 'line 3: no `# -> ANSWER` with: compllm ask "Why?"\n'


def outcome(script: ModuleType, text: str, stdout: str, *answers: str, status: int = 0) -> object:
    step = script.Step(text, 1, "shell", answers)
    return script.problem_of(step, status, stdout, "", is_up=False)


def test_answer_must_be_in_what_is_printed(script: ModuleType) -> None:
    assert outcome(script, 'compllm ask "Why?"', "because it is\n", "because") is None
    assert "shows 'because'" in str(outcome(script, 'compllm ask "Why?"', "no\n", "because"))


def test_streamed_text_is_joined_before_it_is_compared(script: ModuleType) -> None:
    streamed = 'data: {"text_output": "be"}\n\ndata: {"text_output": "cause", "x": "other"}\n\n'
    assert outcome(script, "curl -sN x", streamed, "because") is None
    assert outcome(script, "curl -sN x", streamed, "other") is not None
    assert "no JSON" in str(outcome(script, "curl -sN x", "<html>", "because"))


def test_failed_command_is_a_failure_but_doctor_may_miss_what_up_makes(script: ModuleType) -> None:
    assert outcome(script, "compllm status", "", status=1) == "exit status 1"
    assert outcome(script, "compllm doctor", "", status=1) is None
    doctor = script.Step("compllm doctor", 1, "shell")
    assert script.problem_of(doctor, 1, "", "", is_up=True) == "exit status 1"


def test_environment_of_the_new_user_has_nothing_of_ours(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COMPLLM_CATALOGUE", "PYTHONPATH", "VIRTUAL_ENV", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "/ours")
    env = script.environment(tmp_path / "venv", tmp_path / "home")
    assert "/ours" not in env.values()
    assert env["HOME"] == str(tmp_path / "home")
    assert env["PATH"].startswith(str(tmp_path / "venv" / "bin"))


def test_readmes_blocks_can_be_read(script: ModuleType) -> None:
    found = script.steps((ROOT / "README.md").read_text(encoding="utf-8"))
    for words in (("pip", "install"), ("compllm", "up"), ("compllm", "down"), ("curl",)):
        assert any(each.is_call(*words) for each in found)
    assert sum(each.kind == "python" for each in found) == 2
    script.filled(found)
