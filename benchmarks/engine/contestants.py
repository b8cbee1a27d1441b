"""The contestants of bench_engine.py, each in a worker process of its own."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

RANK = 8


Result = dict[str, float]


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
