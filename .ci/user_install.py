#!/usr/bin/env python3
"""What the README promises a new user, done as printed: its install line, every command, question
and snippet, in an empty environment with an empty home.

    python3.11 .ci/user_install.py                    (about five minutes on two cores)
    python3.11 .ci/user_install.py --readme FILE      another page; --list: only what it would run

Needs the standard library alone. The page shows the answer of every question as `# -> TEXT`, at the
end of its command, on the next line, or anywhere in a Python snippet; TEXT must be in what is
printed (of curl: in its `text_output`, joined). A question without a shown answer is a failure.
Commands run in the page's order, but for `compllm down`, which comes last. Ports 8000 and 8001 of
the page are replaced by free ones, a question written "..." by the one before it. `make` is left
out: the tests run it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("pip", "compllm", "curl")
TIMEOUT_S = 600.0
_ANSWER = re.compile(r"#\s*->\s*(.+?)\s*$")
_PORTS = re.compile(r"\b(800[01])\b")
_PLACEHOLDER = '"..."'


@dataclass(frozen=True, slots=True)
class Step:
    """One command or Python snippet of the page."""

    text: str
    line: int  # of the page, from 1
    kind: str  # "shell" or "python"
    answers: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """Of a command, without its comment."""
        lexer = shlex.shlex(self.text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        return list(lexer)

    @property
    def is_question(self) -> bool:
        """Whether it shows a question whose answer it prints."""
        if self.kind == "python":
            return "?" in self.text
        words = self.words
        if words[0] == "curl":
            return "text_input" in self.text
        return words[:2] == ["compllm", "ask"] and _PLACEHOLDER not in self.text

    def is_call(self, *words: str) -> bool:
        return self.kind == "shell" and self.words[: len(words)] == list(words)


def blocks(page: str) -> Iterator[list[tuple[int, str]]]:
    """The code blocks: fenced, or indented by four spaces after an empty line. Numbered lines."""
    block: list[tuple[int, str]] = []
    is_fenced, before = False, ""
    for number, line in enumerate(page.splitlines(), 1):
        if line.lstrip().startswith("```"):
            if block:
                yield block
            block, is_fenced = [], not is_fenced
        elif is_fenced:
            block.append((number, line))
        elif line.startswith("    ") and (block or not before.strip()):
            block.append((number, line[4:]))
        elif not line.strip() and block:
            block.append((number, ""))  # an indented block goes on behind an empty line
        elif block:
            yield block
            block = []
        before = line
    if block:
        yield block


def steps(page: str) -> list[Step]:
    """What the page shows, in its order: pip, compllm and curl commands, and Python snippets."""
    found: list[Step] = []
    for block in blocks(page):
        first = block[0][1].split()
        if first and first[0] in ("import", "from"):
            text = "\n".join(line for _, line in block) + "\n"
            answers = tuple(m[1] for _, line in block if (m := _ANSWER.search(line)))
            found.append(Step(text, block[0][0], "python", answers))
        else:
            found.extend(_commands(block))
    return found


def _commands(block: Sequence[tuple[int, str]]) -> Iterator[Step]:
    step: Step | None = None
    is_open = False  # the line before ends with a backslash
    for number, line in block:
        answer = _ANSWER.search(line)
        words = line.split()
        if is_open and step is not None:
            step = replace(step, text=f"{step.text}\n{line}")
        elif words and words[0] in PROGRAMS:
            if step is not None:
                yield step
            step = Step(line, number, "shell")
        elif not line.lstrip().startswith("#"):
            if step is not None:
                yield step
            step = None
        if answer and step is not None:
            step = replace(step, answers=(*step.answers, answer[1]))
        is_open = line.endswith("\\")
    if step is not None:
        yield step


def filled(found: Sequence[Step]) -> list[Step]:
    """With the question before it, and that one's answers, in the place of "..."."""
    result: list[Step] = []
    question, answers = "", ()
    for step in found:
        if step.is_call("compllm", "ask") and step.is_question:
            question, answers = max(step.words, key=len), step.answers
        if step.kind == "shell" and _PLACEHOLDER in step.text:
            if not question:
                raise SystemExit(f'line {step.line}: "..." stands before any question')
            text = step.text.replace(_PLACEHOLDER, shlex.quote(question))
            is_shown = step.is_call("compllm", "ask") and ">" not in step.words
            step = replace(step, text=text, answers=answers if is_shown else ())
        result.append(step)
    return result


def unanswered(found: Sequence[Step]) -> list[str]:
    """A line about each question of which the page shows no answer."""
    return [
        f"line {step.line}: no `# -> ANSWER` with: {' '.join(step.text.split())[:100]}"
        for step in found
        if step.is_question and not step.answers
    ]


def printed(step: Step, stdout: str) -> str:
    """Where the answer must be: in curl's case the text of its responses, joined."""
    if not step.is_call("curl"):
        return stdout
    lines = (line.removeprefix("data:").strip() for line in stdout.splitlines())
    return "".join(json.loads(line).get("text_output", "") for line in lines if line)


class Place:
    """A folder with an empty home, an empty environment and a copy of the checkout."""

    def __init__(self, folder: Path) -> None:
        self.source, self.work = folder / "checkout", folder / "anywhere"
        self.venv, home = folder / "venv", folder / "home"
        for each in (self.source, self.work, home):
            each.mkdir()
        self.env = environment(self.venv, home)
        self._ports = dict(zip(("8000", "8001"), _free_ports(2), strict=True))

    def prepare(self) -> None:
        copy_checkout(self.source)
        subprocess.run([sys.executable, "-m", "venv", str(self.venv)], check=True)

    def run(self, step: Step) -> tuple[int, str, str]:
        """Exit status, stdout, stderr; the latter says so where the time was over."""
        text = _PORTS.sub(lambda port: self._ports[port[1]], step.text)
        if step.kind == "python":
            command = [str(self.venv / "bin" / "python"), "-c", text]
        else:
            command = ["bash", "-c", text]
        folder = self.source if step.is_call("pip") else self.work
        with subprocess.Popen(
            command,
            cwd=folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                stdout, stderr = process.communicate(timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                return 124, "", f"not done within {TIMEOUT_S:.0f} s"
        return process.returncode, stdout, stderr

    def call(self, *words: str) -> tuple[int, str, str]:
        return self.run(Step(shlex.join(words), 0, "shell"))


def environment(venv: Path, home: Path) -> dict[str, str]:
    """Ours, without what a developer has set; pip's settings and cache stay."""
    dropped = ("COMPLLM_", "PYTHON", "VIRTUAL_ENV", "MAKE", "XDG_", "TRITON")
    env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    user = Path.home()
    env.setdefault("PIP_CACHE_DIR", str(user / ".cache" / "pip"))
    settings = next((f for f in _pip_settings(user) if f.is_file()), None)
    if settings is not None:
        env.setdefault("PIP_CONFIG_FILE", str(settings))
    path = f"{venv / 'bin'}{os.pathsep}{env.get('PATH', os.defpath)}"
    return env | {"HOME": str(home), "COMPLLM_HOME": str(home / "compllm"), "PATH": path}


def _pip_settings(user: Path) -> tuple[Path, ...]:
    return user / ".config" / "pip" / "pip.conf", user / ".pip" / "pip.conf"


def _free_ports(count: int) -> list[str]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def copy_checkout(to: Path) -> None:
    """What git tracks, and what it would not ignore: nothing that was built here."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in dict.fromkeys(filter(None, listed.split("\0"))):
        source, target = ROOT / name, to / name
        if not os.path.lexists(source) or (source.is_dir() and not source.is_symlink()):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)


def problem_of(step: Step, status: int, stdout: str, stderr: str, *, is_up: bool) -> str | None:
    """What is wrong with the outcome of a step; None where nothing is."""
    # Before the first `up`, doctor has things to report.
    allowed = (0, 1) if step.is_call("compllm", "doctor") and not is_up else (0,)
    if status not in allowed:
        return f"exit status {status}"
    try:
        text = printed(step, stdout)
    except ValueError as error:
        return f"no JSON: {error}"
    missing = [answer for answer in step.answers if answer not in text]
    return f"the page shows {missing[0]!r}, printed was {text[-600:]!r}" if missing else None


def run_all(found: Sequence[Step], place: Place) -> tuple[int, int]:
    """How many steps there were, and how many did as the page says."""
    downs = [step for step in found if step.is_call("compllm", "down")]
    doctor = Step("compllm doctor", 0, "shell")  # once more, when all is there
    ordered = [step for step in found if step not in downs] + [doctor, *downs]
    num_passed, is_up = 0, False
    for step in ordered:
        if step.is_call("compllm", "up") and is_up:
            place.call("compllm", "down")  # the page's next server has other ports
        start = time.monotonic()
        status, stdout, stderr = place.run(step)
        problem = problem_of(step, status, stdout, stderr, is_up=is_up)
        is_up |= step.is_call("compllm", "up")
        num_passed += problem is None
        _report(step, problem, stdout + stderr, time.monotonic() - start)
        if problem and (step.is_call("pip") or step.is_call("compllm", "up")):
            break  # nothing after it could go well
    return len(ordered), num_passed


def _report(step: Step, problem: str | None, output: str, seconds: float) -> None:
    where = f"README line {step.line}" if step.line else "at the end"
    head = step.text.strip().splitlines()[0][:90]
    kind = "a Python snippet: " if step.kind == "python" else ""
    print(f"{'FAIL' if problem else 'ok':<5}{seconds:6.1f} s  {where}: {kind}{head}", flush=True)
    if problem:
        print(f"    {problem}\n" + output[-3000:], flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Do what the README shows, as a new user.")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE")
    parser.add_argument("--list", action="store_true", dest="is_list", help="run nothing")
    parser.add_argument("--keep", action="store_true", help="keep the folder it worked in")
    options = parser.parse_args(arguments)
    found = steps(options.readme.read_text(encoding="utf-8"))
    missing = unanswered(found)
    found = filled(found)
    if options.is_list:
        print(
            *(f"{each.line:>4} {each.kind:<6} {each.answers} {each.text}" for each in found),
            sep="\n",
        )
    print(*missing, sep="\n" if missing else "", end="\n" if missing else "")
    if options.is_list or missing:
        return bool(missing)
    folder = Path(tempfile.mkdtemp(prefix="compllm-user-"))
    try:
        place = Place(folder)
        place.prepare()
        try:
            num_steps, num_passed = run_all(found, place)
        finally:
            if (place.venv / "bin" / "compllm").exists():
                place.call("compllm", "down")
    finally:
        if options.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"user install: {num_steps} commands, {num_passed} passed")
    return num_passed != num_steps


if __name__ == "__main__":
    sys.exit(main())
