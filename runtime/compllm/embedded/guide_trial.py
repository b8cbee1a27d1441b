"""Trials of clients' guides in a process that can be ended.

A JSON schema of 3 KB can take minutes and 15 GB to compile, and llguidance cannot be interrupted.
`GuideTrial.try_out` compiles a guide, and computes its first mask, in a process with limits of time
and memory. What passes there is compiled in the engine, where it takes as much again at most. The
process starts with the first such guide and stays; one that goes over a limit ends, and the next
guide starts another.

The process runs this file: `python -m compllm.embedded.guide_trial TOKENIZER VOCAB_SIZE END_IDS`.
It reads a JSON object a line, {"type", "text"}, and answers {"error", "num_bytes"}.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compllm.errors import EngineClosed, EngineError, RequestInvalid

MAX_CPU_S = 2  # of one guide; RLIMIT_CPU counts whole seconds, so it may take one more
MAX_BYTES = 256 * 2**20  # that one guide may add to the process's memory
_MAX_WAIT_S = 20.0  # for an answer on a machine whose cores are busy
_START_S = 120.0
_MAX_REFUSED = 1024
_STACK_BYTES = 4 * 2**20  # half of what the engine's threads have: what nests too deep ends here
_NICENESS = 5  # added to the engine's own: trials give way to tokens


class GuideTrial:
    """The process, from the engine's side. Safe to share between threads; one trial at a time.

    tokenizer: directory of `tokenizer.json`. vocab_size, eos_ids: as of `GuideCompiler`.
    """

    def __init__(self, tokenizer: Path, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self._arguments = [str(tokenizer), str(vocab_size), json.dumps(list(eos_ids))]
        self._lock = threading.Lock()
        self._refused: OrderedDict[bytes, None] = OrderedDict()  # hashes of what was too costly
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def try_out(self, guide_type: str, text: str) -> int:
        """Bytes that this guide takes, compiled. Raises RequestInvalid for one that cannot be
        compiled within the limits, EngineError where the process cannot be started."""
        question = json.dumps({"type": guide_type, "text": text}).encode() + b"\n"
        key = hashlib.sha256(question).digest()
        with self._lock:
            answer = None if key in self._refused else self._ask(question)
            if answer is None:
                self._refused[key] = None
                while len(self._refused) > _MAX_REFUSED:
                    self._refused.popitem(last=False)
                raise RequestInvalid(
                    f"the {guide_type} guide of {len(text)} characters is too costly: compiling it "
                    f"takes more than {MAX_CPU_S} s or {MAX_BYTES >> 20} MB, or it nests too "
                    "deep; make it smaller"
                )
        if answer["error"] is not None:
            raise RequestInvalid(answer["error"])
        return int(answer["num_bytes"])

    def _ask(self, question: bytes) -> dict[str, Any] | None:
        process = self._started()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(question)
            process.stdin.flush()
        answer = _line(process, _MAX_WAIT_S)
        if answer is None:
            self._end()
            if self._is_closed:
                raise EngineClosed("the engine is shut down")
        return answer

    def close(self) -> None:
        """End the process, also in the middle of a trial."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        if self._is_closed:
            raise EngineClosed("the engine is shut down")
        # Triton's stub is no interpreter, but the right one is the first on its PATH.
        is_python = Path(sys.executable or "").name.startswith("python")
        python = sys.executable if is_python else shutil.which("python3")
        if python is None:
            raise EngineError("guides need python3 on PATH: none was found")
        self._process = process = subprocess.Popen(
            [python, "-m", __name__, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        if _line(process, _START_S) is None:
            self._end()
            raise EngineError("the process that tries guides did not start: see the server's log")
        return process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _line(process: subprocess.Popen[bytes], timeout_s: float) -> dict[str, Any] | None:
    """The process's next answer; None where it ends first, or is silent for too long."""
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_s
    received = b""
    while not received.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            return None
        part = os.read(process.stdout.fileno(), 65536)
        if not part:
            return None
        received += part
    answer: dict[str, Any] = json.loads(received)
    return answer


# The process's own side


def _memory_bytes() -> tuple[int, int]:
    """Address space and resident memory of this process."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()
    size = resource.getpagesize()
    return int(pages[0]) * size, int(pages[1]) * size


def _serve(arguments: Sequence[str]) -> None:
    from compllm.embedded.guide import GuideCompiler

    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tokenizer, vocab_size, eos_ids = Path(arguments[0]), int(arguments[1]), json.loads(arguments[2])
    compiler = GuideCompiler(tokenizer, vocab_size, eos_ids)
    _answer({"error": None, "num_bytes": 0})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a guide that ends the process fills no log
    for line in sys.stdin.buffer:
        question = json.loads(line)
        space, resident = _memory_bytes()
        used_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_AS, (space + MAX_BYTES, resource.RLIM_INFINITY))
        resource.setrlimit(
            resource.RLIMIT_CPU, (int(used_s) + 1 + MAX_CPU_S, resource.RLIM_INFINITY)
        )
        error = None
        try:
            guide = compiler.start(question["type"], question["text"])
            guide.prepare()
            error = guide.error
        except RequestInvalid as refused:
            error = str(refused)
        _answer({"error": error, "num_bytes": max(0, _memory_bytes()[1] - resident)})


def _answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    """Answer until the engine closes its end."""
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_serve, args=(arguments,))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main(sys.argv[1:])
