"""The embedded engine beside OpenVINO GenAI and beside one engine per expert, in one run.

    python benchmarks/engine/bench_engine.py [--quick] [--rounds 3]

Every contestant lives in its own process and waits while another works; all are asked in turn,
round after round, so that a drift of the machine meets all of them. Per number of requests: new
tokens per second, milliseconds per step, time to first token; resident memory of each process;
the memory-bandwidth floor of one token, measured here. Contestants: ours without adapters, with
1, 4, 8 and 16 of them mixed round-robin over the requests; GenAI's ContinuousBatchingPipeline on
the base, and with one adapter; four engines side by side, GenAI's (experts merged) or ours.

GenAI reads the export of optimum-intel (8-bit rows as ours); both are only needed here: `make
bench` installs them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.engine.contestants import Result, Worker, make_factors
from benchmarks.report import Report, add_arguments

NUM_REQUESTS = (1, 2, 4, 8, 16, 32)
ADAPTER_COUNTS = (0, 1, 4, 8, 16)
PROMPT_TOKENS = 32
LONG_PROMPT_TOKENS = 200
RATIOS = (
    ("ours, 0 adapters", "GenAI, base"),
    ("ours, 4 adapters", "GenAI, base"),
    ("ours, 4 adapters", "GenAI, 1 adapter"),
    ("ours, 4 adapters", "ours, 1 adapters"),
    ("ours, 4 adapters", "4 separate GenAI engines"),
    ("ours, 4 adapters", "4 separate engines of ours"),
    ("ours, 16 adapters", "ours, 4 adapters"),
    ("ours, 4 adapters", "ours, 0 adapters"),
    ("ours, 4 adapters", "ours as mask graph, 4 adapters"),
)

Contests = Mapping[str, tuple[str, int]]  # a row's name -> worker, adapters in the mix
Samples = dict[tuple[str, int], list[Result]]  # of a row and a number of requests


def genai_model(checkpoint: Path, cache: Path) -> Path:
    """The base exported by optimum-intel with 8-bit weights; made once."""
    out = cache / "genai-int8"
    if (out / "openvino_tokenizer.xml").is_file():
        return out
    from openvino import save_model
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from transformers import AutoTokenizer

    model = OVModelForCausalLM.from_pretrained(
        checkpoint,
        export=True,
        compile=False,
        quantization_config=OVWeightQuantizationConfig(bits=8),
    )
    model.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.save_pretrained(out)
    pair = convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, part in zip(("openvino_detokenizer", "openvino_tokenizer"), pair[::-1], strict=True):
        save_model(part, out / f"{name}.xml")
    return out


def peft_file(engine_dir: Path, cache: Path) -> Path:
    """One random adapter as the PEFT file that GenAI reads."""
    from safetensors.numpy import save_file

    from compllm.formats.shape import BaseShape

    shape = BaseShape.from_config(json.loads((engine_dir / "config.json").read_text()))
    tensors = {}
    for (layer, module), (a, b) in make_factors(shape, 0).items():
        part = "mlp" if module in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        prefix = f"base_model.model.model.layers.{layer}.{part}.{module}"
        tensors[f"{prefix}.lora_A.weight"] = a
        tensors[f"{prefix}.lora_B.weight"] = b
    path = cache / "random-adapter.safetensors"
    save_file(tensors, path)
    return path


def read_bandwidth() -> float:
    """Bytes per second that all cores together read from memory now: the median sum of 512 MB."""
    import torch

    data = torch.ones(2**27, dtype=torch.float32)
    rates = []
    for _ in range(7):
        start = time.perf_counter()
        data.sum()
        rates.append(data.nbytes / (time.perf_counter() - start))
    return statistics.median(rates)


def make_workers(
    engine_dir: Path, adapter_counts: Sequence[int], *, is_quick: bool, is_genai_skipped: bool
) -> dict[str, Worker]:
    """The processes, by name. is_quick: ours alone."""
    from compllm import paths

    ours = Worker("ours", engine_dir=str(engine_dir), num_adapters=max(adapter_counts))
    workers = {"ours": ours}
    if is_quick:
        return workers
    workers["separate"] = Worker("ours", engine_dir=str(engine_dir), num_adapters=1, num_engines=4)
    workers["mask"] = Worker("ours", engine_dir=str(engine_dir), num_adapters=4, form="mask")
    if not is_genai_skipped:
        cache = paths.home_dir() / "bench"
        cache.mkdir(parents=True, exist_ok=True)
        model = str(genai_model(paths.base_dir(), cache))
        workers["genai"] = Worker("genai", model_dir=model, adapter=None)
        workers["genais"] = Worker("genais", model_dir=model, num_engines=4)
        adapter = str(peft_file(engine_dir, cache))
        workers["genai+1"] = Worker("genai", model_dir=model, adapter=adapter)
    return workers


def contests_of(workers: Collection[str], adapter_counts: Sequence[int]) -> Contests:
    contests = {f"ours, {n} adapters": ("ours", n) for n in adapter_counts}
    contests |= {
        row: (worker, 0 if worker in ("genai", "genais") else 1)
        for row, worker in (
            ("GenAI, base", "genai"),
            ("GenAI, 1 adapter", "genai+1"),
            ("4 separate GenAI engines", "genais"),
            ("4 separate engines of ours", "separate"),
        )
        if worker in workers
    }
    if "mask" in workers:
        contests["ours as mask graph, 4 adapters"] = ("mask", 4)
    return contests


def run_rounds(
    workers: Mapping[str, Worker],
    contests: Contests,
    counts: Sequence[int],
    num_rounds: int,
    num_new: int,
    weight_bytes: int,
) -> tuple[Samples, list[Result]]:
    """What every contestant took, round by round, and the memory floor next to one token of ours.
    A number of requests of 0 stands for one request with a long prompt."""
    samples: Samples = {}
    floors: list[Result] = []  # per round: the memory moves at another speed minutes later
    for worker, adapters in contests.values():  # warm-up: compiles kernels for each shape
        for count in counts:
            workers[worker].run(count, PROMPT_TOKENS, 4, adapters, 1)
    for turn in range(num_rounds):
        for count in counts:
            for name, (worker, adapters) in contests.items():
                result = workers[worker].run(count, PROMPT_TOKENS, num_new, adapters, turn)
                samples.setdefault((name, count), []).append(result)
        for _ in range(5):
            bandwidth = read_bandwidth()
            result = workers["ours"].run(1, PROMPT_TOKENS, num_new, 0, turn)
            floor_ms = 1e3 * weight_bytes / bandwidth
            floors.append(
                {
                    "bandwidth_gb_per_s": bandwidth / 1e9,
                    "floor_ms": floor_ms,
                    "ours_ms": result["decode_ms"],
                    "ours_over_floor": result["decode_ms"] / floor_ms,
                }
            )
        for name, (worker, adapters) in contests.items():
            result = workers[worker].run(1, LONG_PROMPT_TOKENS, 1, adapters, turn)
            samples.setdefault((name, 0), []).append(result)
        print(f"round {turn + 1} of {num_rounds}", file=sys.stderr, flush=True)
    return samples, floors


def add_medians(report: Report, samples: Samples, counts: Sequence[int]) -> None:
    def median(name: str, count: int, key: str) -> float:
        return statistics.median(sample[key] for sample in samples[name, count])

    for key in ("tokens_per_s", "step_ms", "decode_ms", "ttft_ms"):
        for name in dict.fromkeys(name for name, _ in samples):
            if key == "decode_ms" and "GenAI" in name:
                continue  # its own figure counts the tokens of the whole batch
            cells = {f"{count} requests": median(name, count, key) for count in counts}
            if key == "ttft_ms":
                cells[f"1 request, {LONG_PROMPT_TOKENS}-token prompt"] = median(name, 0, key)
            report.add(key, contestant=name, **cells)


def add_ratios(report: Report, samples: Samples, counts: Sequence[int]) -> None:
    def ratio(ours: str, theirs: str, count: int) -> float:
        pairs = zip(samples[ours, count], samples[theirs, count], strict=True)
        return statistics.median(a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs)

    there = {name for name, _ in samples}
    for ours, theirs in RATIOS:
        if ours in there and theirs in there:
            cells = {f"{count} requests": ratio(ours, theirs, count) for count in counts}
            report.add("tokens/s ratio", ours=ours, theirs=theirs, **cells)


def main(argv: Sequence[str] | None = None) -> int:
    from compllm import paths

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", type=Path, default=None, help="default: the built one")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--skip-genai", action="store_true", help="measure ours alone")
    arguments = parser.parse_args(argv)
    is_quick = arguments.quick
    engine_dir = (arguments.engine or paths.engine_dir()).resolve()
    counts = (1, 4) if is_quick else NUM_REQUESTS
    adapter_counts = (0, 4) if is_quick else ADAPTER_COUNTS
    num_rounds, num_new = (1, 8) if is_quick else (arguments.rounds, arguments.new_tokens)
    report = Report(
        "bench_engine",
        arguments,
        ("openvino", "openvino-genai", "optimum-intel", "nncf", "numpy"),
        "medians over rounds; contestants alternate within a round, ratios are medians of ratios",
    )
    workers = make_workers(
        engine_dir, adapter_counts, is_quick=is_quick, is_genai_skipped=arguments.skip_genai
    )
    contests = contests_of(workers, adapter_counts)
    weight_bytes = os.path.getsize(engine_dir / "weights.safetensors")
    samples, floors = run_rounds(workers, contests, counts, num_rounds, num_new, weight_bytes)
    add_medians(report, samples, counts)
    add_ratios(report, samples, counts)
    for name, worker in workers.items():
        report.add("memory", process=name, resident_mib=worker.memory_bytes / 2**20)
        worker.close()
    report.add(
        "floor of one token, medians of alternating pairs",
        weights_mib=weight_bytes / 2**20,
        **{key: statistics.median(floor[key] for floor in floors) for key in floors[0]},
    )
    report.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
