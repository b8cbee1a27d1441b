"""What the tests of the command line share: a catalogue, replies in place of a server, output."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from compllm.catalogue import load_catalogue
from compllm.config import Config
from compllm.pipeline import CompLLM
from compllm.testing import HashingEncoder, Reply, ScriptedBackend

CATALOGUE = """
[base]
system = "Answer."
[router]
threshold = 0.3
encoder = "hashing-64"
[[experts]]
name = "chemistry"
domain = "elements"
system = "You know elements."
examples = ["What is the atomic number of iron?"]
"""


PLAN = "1 | What is the atomic number of iron?\n2 | How many legs?\n3 <1,2> | What is #1 plus #2?\n"


REPLIES = (
    Reply(PLAN, is_guided=True),
    Reply("26", contains="atomic number of iron?<|im_end|>"),
    Reply("4", contains="How many legs?<|im_end|>"),
    Reply("thirty", contains="What is 26 plus 4?"),
    Reply(("It is ", "30."), contains="the whole"),
)


def script(monkeypatch: pytest.MonkeyPatch, *replies: Reply) -> ScriptedBackend:
    """What `CompLLM.connect` finds instead of a server."""
    backend = ScriptedBackend(*replies)

    async def connect(config: Config) -> CompLLM:
        catalogue = load_catalogue(Path(config.catalogue))
        return CompLLM(backend, HashingEncoder(), catalogue, config)

    monkeypatch.setattr(CompLLM, "connect", connect)
    monkeypatch.setenv("COMPLLM_SERVER_URL", "127.0.0.1:1")
    return backend


def printed_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line an error is."""
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    return line


def give_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
