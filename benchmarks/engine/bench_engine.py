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
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.report import Report, add_arguments

NUM_REQUESTS = (1, 2, 4, 8, 16, 32)
ADAPTER_COUNTS = (0, 1, 4, 8, 16)
PROMPT_TOKENS = 32
LONG_PROMPT_TOKENS = 200
RANK = 8
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

Result = dict[str, float]
Contests = Mapping[str, tuple[str, int]]  # a row's name -> worker, adapters in the mix
Samples = dict[tuple[str, int], list[Result]]  # of a row and a number of requests


# ---- what the workers run
# ----------------------------------------------------------------------------


def make_factors(shape: Any, seed: int) -> dict[tuple[int, str], tuple[Any, Any]]:
    """A and B of an adapter on all linear layers, random but small: speed is all that counts."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return {
        (layer, module): (
            rng.normal(0, 0.02, (RANK, inputs)).astype(np.float32),
            rng.normal(0, 0.02, (outputs, RANK)).astype(np.float32),
        )
        for layer in range(shape.num_layers)
        for module, (outputs, inputs) in shape.module_shapes().items()
    }


def prompts_of(num_requests: int, num_tokens: int, seed: int) -> list[list[int]]:
    import numpy as np

    rng = np.random.default_rng(seed)
    return [[int(i) for i in rng.integers(100, 40000, num_tokens)] for _ in range(num_requests)]


class Ours:
    """Our executor; `engines` of them share the requests, each with its own adapters."""

    def __init__(
        self, engine_dir: str, num_adapters: int, num_engines: int = 1, form: str = "auto"
    ) -> None:
        from compllm.embedded.executor import Executor
        from compllm.embedded.options import ExecutorOptions
        from compllm.formats.adapters import LoraWeights, make_adapter

        options = ExecutorOptions(
            max_adapters=max(1, num_adapters), is_prefix_reused=False, adapter_form=form
        )
        self.engines = [Executor(Path(engine_dir), options) for _ in range(num_engines)]
        for place, engine in enumerate(self.engines):
            shape = engine.runner.weights.shape
            for number in range(num_adapters):
                factors = make_factors(shape, 100 * place + number)
                weights = {key: LoraWeights(a, b) for key, (a, b) in factors.items()}
                engine.load_adapter(number + 1, make_adapter(f"random-{number}", weights))

    def run(self, prompts: Sequence[Sequence[int]], num_new: int, num_adapters: int) -> Result:
        import threading

        from compllm.embedded.request import EngineEvent, EngineRequest

        done = threading.Semaphore(0)
        ttft, decode = [], []

        def on_event(event: EngineEvent) -> None:
            if event.is_final:
                perf = event.perf
                assert perf is not None, event.error
                ttft.append(perf.first_token_ns - perf.arrival_ns)
                decode.append((perf.last_token_ns - perf.first_token_ns) / max(1, num_new - 1))
                done.release()

        before = sum(e.stats().num_steps for e in self.engines)
        start = time.perf_counter()
        for number, prompt in enumerate(prompts):
            task_id = number % num_adapters + 1 if num_adapters else None
            request = EngineRequest(tuple(prompt), num_new, task_id=task_id)
            self.engines[number % len(self.engines)].submit(request, on_event)
        for _ in prompts:
            done.acquire()
        seconds = time.perf_counter() - start
        steps = sum(e.stats().num_steps for e in self.engines) - before
        return {
            "tokens_per_s": len(prompts) * num_new / seconds,
            "step_ms": 1e3 * seconds * len(self.engines) / steps,
            "ttft_ms": statistics.mean(ttft) / 1e6,
            "decode_ms": statistics.mean(decode) / 1e6,
        }


class GenAI:
    """OpenVINO GenAI's continuous batching, token ids in and out."""

    def __init__(self, model_dir: str, adapter: str | None) -> None:
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 1
        scheduler.max_num_batched_tokens = 256
        properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if adapter:
            properties["adapters"] = genai.AdapterConfig(genai.Adapter(adapter), 1.0)
        self._genai = genai
        self._pipeline = genai.ContinuousBatchingPipeline(
            model_dir, scheduler, "CPU", properties, {}, {}
        )

    def run(self, prompts: Sequence[Sequence[int]], num_new: int, num_adapters: int) -> Result:
        import numpy as np
        import openvino as ov

        config = self._genai.GenerationConfig()
        config.max_new_tokens = num_new
        config.ignore_eos = True
        config.do_sample = False
        inputs = [ov.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        start = time.perf_counter()
        results = self._pipeline.generate(inputs, [config] * len(inputs))
        seconds = time.perf_counter() - start
        assert all(len(r.m_generation_ids[0]) == num_new for r in results)
        return {
            "tokens_per_s": len(prompts) * num_new / seconds,
            "step_ms": 1e3 * seconds / num_new,
            "ttft_ms": statistics.mean(r.perf_metrics.get_ttft().mean for r in results),
            "decode_ms": statistics.mean(r.perf_metrics.get_tpot().mean for r in results),
        }


class GenAIs:
    """GenAI pipelines side by side, the requests dealt out: experts merged into copies of the base,
    an engine each, as they are served where adapters cannot be mixed."""

    def __init__(self, model_dir: str, num_engines: int) -> None:
        self.engines = [GenAI(model_dir, None) for _ in range(num_engines)]

    def run(self, prompts: Sequence[Sequence[int]], num_new: int, num_adapters: int) -> Result:
        from concurrent.futures import ThreadPoolExecutor

        shares = [prompts[i :: len(self.engines)] for i in range(len(self.engines))]
        jobs = [(e, share) for e, share in zip(self.engines, shares, strict=True) if share]
        start = time.perf_counter()
        with ThreadPoolExecutor(len(jobs)) as pool:
            results = list(pool.map(lambda job: job[0].run(job[1], num_new, 0), jobs))
        seconds = time.perf_counter() - start
        means = {key: statistics.mean(r[key] for r in results) for key in results[0]}
        return means | {"tokens_per_s": len(prompts) * num_new / seconds}


def work(kind: str, arguments: Mapping[str, Any], connection: Connection) -> None:
    """A worker process: makes its contestant, then answers runs until the pipe closes."""
    import psutil

    contestant: Any = {"ours": Ours, "genai": GenAI, "genais": GenAIs}[kind](**arguments)
    connection.send(psutil.Process().memory_info().rss)
    while (job := connection.recv()) is not None:
        connection.send((contestant.run(*job), psutil.Process().memory_info().rss))


class Worker:
    """A contestant in a process of its own, idle unless asked."""

    def __init__(self, kind: str, **arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(kind, arguments, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.memory_bytes: int = self._connection.recv()

    def run(
        self, num_requests: int, num_tokens: int, num_new: int, adapters: int, seed: int
    ) -> Result:
        self._connection.send((prompts_of(num_requests, num_tokens, seed), num_new, adapters))
        result, self.memory_bytes = self._connection.recv()
        return dict(result)

    def close(self) -> None:
        self._connection.send(None)
        self._process.join()


# ---- preparation
# -----------------------------------------------------------------------------------------


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


# ---- the run
# ---------------------------------------------------------------------------------------------


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
