"""docs/OWN.md as a new user has it: every command, in an empty home, with a tiny base.

Left out is what only costs time: training takes one pass over the facts.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import MakeAdapter, own_home
from openai_loopback import OpenAILoopback

PAGE = Path(__file__).parents[2] / "docs" / "OWN.md"
_SHOWN = re.compile(r"^\s*# -> (.+)$", re.MULTILINE)
_TIMEOUT_S = 900

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(1800)]


def blocks(page: str) -> list[str]:
    """The code blocks of a page, which are indented by four spaces."""
    found = re.findall(r"(?:^(?: {4}.*)?\n)+", page, re.MULTILINE)
    lines = ("\n".join(line[4:] for line in each.strip("\n").splitlines()) for each in found)
    return [each for each in lines if each.strip()]


@pytest.fixture(scope="module")
def work(
    tiny_checkpoint: Path,
    make_adapter: MakeAdapter,
    encoder_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """A folder with the base and the adapters that the page names, and a home without a base."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(tiny_checkpoint, folder / "my-base")
    for seed, name in enumerate(("law-adapter", "music-adapter")):
        made = make_adapter(folder / "my-base", name, seed=seed, scale=1.0)
        shutil.copytree(made, folder / name)
    with own_home(tmp_path_factory.mktemp("home"), encoder_dir) as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        patch.setenv("COMPLLM_LIMITS_MAX_NODE_TOKENS", "8")
        patch.setenv("COMPLLM_LIMITS_MAX_ANSWER_TOKENS", "8")
        yield folder
        subprocess.run(["compllm", "down"], check=True, capture_output=True)


@contextmanager
def _a_server_of_an_expert() -> Iterator[str]:
    """Its URL. It runs on a thread of its own."""
    loop, server = asyncio.new_event_loop(), OpenAILoopback()
    server.models = ["big-model"]
    stop = loop.run_until_complete(server.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.url
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(stop())
        loop.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with _a_server_of_an_expert() as url:
        yield url


def test_every_command_of_the_page_does_what_it_shows(work: Path, url: str) -> None:
    folder = work
    for block in blocks(PAGE.read_text(encoding="utf-8")):
        script = block.replace("compllm up", "compllm up --timeout 400")
        script = script.replace("http://127.0.0.1:8000", url)
        script = script.replace("--train rooms.csv", "--train rooms.csv --epochs 1")
        script = re.sub(r"(expert add \w+)", r"\1 --yes", script)
        ended = subprocess.run(
            ["bash", "-ec", f"{script}\npwd >{work}/where"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        assert ended.returncode == 0, f"{block}\n{ended.stdout}\n{ended.stderr}"
        for shown in _SHOWN.findall(block):
            assert shown in ended.stdout, f"{block}\n{ended.stdout}\n{ended.stderr}"
        folder = Path((work / "where").read_text().strip())
    assert {each.name for each in folder.iterdir()} >= {"compllm.toml", "adapters"}
    generator, *adapters = sorted(each.name for each in (folder / "adapters").iterdir())
    assert generator.startswith("generator-")
    assert adapters == ["law", "rooms"]


def test_the_blocks_of_a_page_are_found() -> None:
    assert blocks("A\n\n    one\n    # -> x\n\n    two\n\nB\n\n- c\n") == ["one\n# -> x\n\ntwo"]
