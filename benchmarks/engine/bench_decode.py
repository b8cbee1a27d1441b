"""What a decoding step takes in each form that the embedded engine has for it.

    python -m benchmarks.engine.bench_decode [--rounds N] [--quick]

The forms alternate step by step in one process, with the same weights, four rank-8 adapters dealt
out in turn and caches already filled, at 1 to 32 sequences: the decode operation with models of
fixed and of any shape, OpenVINO's paged attention between our operations, and that with an 8-bit
cache. Ratios are medians of ratios to the first, step by step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.engine.contestants import make_factors
from benchmarks.report import Report, add_arguments

NUM_SEQUENCES = (1, 2, 4, 8, 16, 32)
CONTEXTS = (64, 250)
NUM_ADAPTERS = 4
_BLOCK = 32
_WARM_UP = 3

# name -> (kind of cache, sequences that have a model; see Runner)
FORMS: dict[str, tuple[str, tuple[int, ...]]] = {
    "operation, fixed shape": ("f16", NUM_SEQUENCES),
    "operation, any shape": ("f16", (0,)),
    "paged attention": ("f16", ()),
    "paged attention, 8-bit cache": ("u8", ()),
}


def make_runner(
    engine_dir: Any, num_blocks: int, kv_precision: str = "f16", sizes: Sequence[int] | None = None
) -> Any:
    """With four random adapters. sizes: of decoding steps that have a model; default: all."""
    from compllm.embedded.model import Weights
    from compllm.embedded.runner import DECODE_SIZES, Runner
    from compllm.formats.adapters import LoraWeights, make_adapter

    weights = Weights.load(engine_dir)
    adapters = {}
    for slot in range(1, NUM_ADAPTERS + 1):
        factors = make_factors(weights.shape, slot)
        modules = {key: LoraWeights(a, b) for key, (a, b) in factors.items()}
        adapters[slot] = make_adapter(f"random-{slot}", modules)
    runner = Runner(
        weights,
        num_blocks=num_blocks,
        kv_precision=kv_precision,
        num_slots=NUM_ADAPTERS,
        form="op",
        decode_sizes=DECODE_SIZES if sizes is None else sizes,
    )
    runner.set_adapters(adapters)
    return runner


def make_step(num_sequences: int, context: int, num_adapters: int) -> Any:
    from compllm.embedded.runner import Step

    step = Step()
    blocks = -(-(context + 1) // _BLOCK)
    for place in range(num_sequences):
        slot = place * num_adapters // num_sequences + 1 if num_adapters else 0
        own = [place * blocks + number for number in range(blocks)]
        step.add([5 + place], context, slot, own, is_sampled=True)
    return step


def main(argv: Sequence[str] | None = None) -> int:
    from compllm import paths

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args(argv)
    counts = (1, 2) if arguments.quick else NUM_SEQUENCES
    contexts = CONTEXTS[:1] if arguments.quick else CONTEXTS
    rounds = 3 if arguments.quick else arguments.rounds
    longest = -(-(max(contexts) + 1) // _BLOCK)
    runners = {
        name: make_runner(paths.engine_dir(), max(counts) * longest, *form)
        for name, form in FORMS.items()
    }
    report = Report("bench_decode", arguments, ("openvino", "numpy"), "medians; see the ratios")
    first = next(iter(FORMS))
    for num in counts:
        for context in contexts:
            for num_adapters in (0, NUM_ADAPTERS):
                times: dict[str, list[float]] = {name: [] for name in runners}
                for _ in range(_WARM_UP + rounds):
                    for name, runner in runners.items():
                        step = make_step(num, context, num_adapters)
                        start = time.perf_counter()
                        runner.run(step)
                        times[name].append(1e3 * (time.perf_counter() - start))
                for name, each in times.items():
                    pairs = zip(each[_WARM_UP:], times[first][_WARM_UP:], strict=True)
                    report.add(
                        "decoding step",
                        sequences=num,
                        context=context,
                        adapters=num_adapters,
                        form=name,
                        ms=round(statistics.median(each[_WARM_UP:]), 2),
                        ratio=round(statistics.median(a / b for a, b in pairs), 3),
                    )
    for runner in runners.values():
        runner.close()
    report.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
