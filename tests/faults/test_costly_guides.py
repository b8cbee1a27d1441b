"""14. A guide that takes minutes and gigabytes to compile: all questions stopped behind it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest
from comp_llm_client import QUESTION, generate
from core_client import Refused, infer

from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton

LIMIT_S = 60.0
SLOWEST_S = 5.0  # of a question meanwhile
MOST_BYTES = 1.5e9  # of a trial's process: it took 15 GB
PATTERNS = [{"pattern": f"^(.*a.{{{number}}}.*)?$"} for number in range(60)]
COSTLY = {
    "schema": ("json_schema", json.dumps({"type": "string", "allOf": PATTERNS})),
    "regex": ("regex", "(([a-z]{1,100}){1,99}){1,99}"),
    "grammar": ("ebnf_grammar", 'root ::= "a"{0,500000}'),
}


@contextmanager
def attacked(server: ServerInfo, guide_type: str, guide: str) -> Iterator[list[str]]:
    """While the block runs, a client sends this guide; what became of it, once it has ended."""
    endings: list[str] = []

    def attack() -> None:
        tensors = {"guided_decoding_guide_type": guide_type, "guided_decoding_guide": guide}
        try:
            endings.append(f"{len(infer(server, tensors))} tokens")
        except Refused as error:
            endings.append(str(error))

    thread = threading.Thread(target=attack)
    thread.start()
    try:
        yield endings
    finally:
        thread.join(2 * LIMIT_S)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    "name",
    [name if name == "schema" else pytest.param(name, marks=pytest.mark.long) for name in COSTLY],
)
def test_a_costly_guide_holds_up_no_question(
    server: ServerInfo, slowness: float, name: str
) -> None:
    before = infer(server)
    generate(server, text_input=QUESTION)
    start_s, slowest_s, most_bytes = time.monotonic(), 0.0, 0
    with attacked(server, *COSTLY[name]) as endings:
        while not endings and time.monotonic() - start_s < LIMIT_S:
            asked_s = time.monotonic()
            assert infer(server) == before
            assert generate(server, text_input=QUESTION, max_tokens=4)["text_output"]
            slowest_s = max(slowest_s, time.monotonic() - asked_s)
            most_bytes = max(most_bytes, trial_bytes(server))
    assert len(endings) == 1
    assert slowest_s < SLOWEST_S * slowness
    assert most_bytes < MOST_BYTES
    assert infer(server) == before


def trial_bytes(server: ServerInfo) -> int:
    """Of all processes below the engine's."""
    found = 0
    for stub in psutil.Process(server.server_pid).children():
        for child in stub.children(recursive=True):
            with suppress(psutil.Error):  # it ended just now
                found += child.memory_info().rss
    return found
