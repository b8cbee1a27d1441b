"""What a step of the embedded engine takes with each instruction set that this processor has.

    python -m benchmarks.engine.bench_isa [--isa NAME]... [--rounds N] [--quick]

A process for each, as the choice is made once for a process; they take turns, a few steps each, so
that the machine's moods meet all of them. Steps of decoding with caches already filled and four
rank-8 adapters dealt out in turn, and steps that read a prompt. Beside the times the memory's
floor: every weight read once.
Result: bench_isa.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.engine.bench_engine import read_bandwidth
from benchmarks.report import ROOT, Report, add_arguments

ISAS = ("vnni", "avx512", "avx2", "generic")  # of COMPLLM_ISA; what is not there becomes a lesser
DECODES = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
PREFILLS = (32, 128, 256)
_CONTEXT = 64
_STEPS_A_TURN = 5
_KINDS = [("decode", size) for size in DECODES] + [("prefill", size) for size in PREFILLS]


def work(engine_dir: Path) -> None:
    """One process's side: reads a kind a line, answers with the milliseconds of its steps."""
    from benchmarks.engine.bench_decode import NUM_ADAPTERS, make_runner, make_step
    from compllm.embedded.runner import Step

    runner = make_runner(engine_dir, num_blocks=3 * max(DECODES))
    print(json.dumps(runner.table.isa), flush=True)
    for line in sys.stdin:
        kind, size, count = json.loads(line)
        found = []
        for _ in range(count):
            if kind == "decode":
                step = make_step(size, _CONTEXT, NUM_ADAPTERS)
            else:
                step = Step()
                blocks = range(-(-size // 32))
                step.add([*range(5, 5 + size)], 0, 1, list(blocks), is_sampled=True)
            start = time.perf_counter()
            runner.run(step)
            found.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(found), flush=True)
    runner.close()


@contextlib.contextmanager
def worker(isa: str, engine_dir: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The name of what the process runs, and the process."""
    program = "import pathlib, sys; from benchmarks.engine.bench_isa import work; "
    program += "work(pathlib.Path(sys.argv[1]))"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(engine_dir.absolute())],
        env={**os.environ, "COMPLLM_ISA": isa},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:  # whose end of input is the sign to end
        yield answer_of(process), process


def answer_of(process: subprocess.Popen[str], *question: Any) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    if question:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a process with one of the instruction sets died: see above")
    return json.loads(line)


def main(argv: Sequence[str] | None = None) -> int:
    from compllm import paths

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_arguments(parser)
    parser.add_argument("--isa", action="append", choices=ISAS, help="default: all but generic")
    parser.add_argument("--rounds", type=int, default=12, help=f"of {_STEPS_A_TURN} steps each")
    parser.add_argument("--engine", type=Path, help="a directory; default: the one of `up`")
    arguments = parser.parse_args(argv)
    engine_dir = arguments.engine or paths.engine_dir()
    kinds = _KINDS[:2] + _KINDS[-3:-2] if arguments.quick else _KINDS
    rounds = 2 if arguments.quick else arguments.rounds
    report = Report("bench_isa", arguments, ("openvino", "numpy"), "medians; adapters: 4, rank 8")
    with contextlib.ExitStack() as stack:
        asked = arguments.isa or ISAS[:-1]
        workers = dict(stack.enter_context(worker(isa, engine_dir)) for isa in asked)
        times: dict[tuple[str, str, int], list[float]] = {}
        for number in range(1 + rounds):  # the first warms up
            for kind, size in kinds:
                names = list(workers) if number % 2 else list(reversed(workers))
                for name in names:
                    found = answer_of(workers[name], kind, size, _STEPS_A_TURN)
                    times.setdefault((name, kind, size), []).extend(found if number else [])
    weight_bytes = (engine_dir / "weights.safetensors").stat().st_size
    report.summary["weights_mb"] = round(weight_bytes / 1e6, 1)
    report.summary["memory_floor_ms"] = round(1e3 * weight_bytes / read_bandwidth(), 2)
    for kind, size in kinds:
        medians = {name: statistics.median(times[name, kind, size]) for name in workers}
        report.add(
            "step, ms",
            kind=kind,
            tokens=size,
            **{name: round(ms, 2) for name, ms in medians.items()},
        )
    report.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
