"""What the benchmarks of a Triton server share: prompts, adapters, metrics, one timed request.

Nothing here knows which engine is behind the contract.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compllm.backend import Backend, GenerateRequest
    from compllm.backends.lora_client import AdapterWeights
    from compllm.backends.tokenizer import Tokenizer
    from compllm.formats.shape import BaseShape

GENERATED = "compllm_generated_tokens_total"
_RANK = 8
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*?)\})? (\S+)$", re.MULTILINE)


@dataclass(slots=True)
class Timed:
    """One request as its user saw it. Seconds from when it was due, not from when it was sent."""

    latency_s: float = 0.0
    ttft_s: float = 0.0
    num_tokens: int = 0
    error: str = ""
    text: str = ""
    gaps_s: list[float] = field(default_factory=list)  # between chunks

    @property
    def tpot_s(self) -> float | None:
        """Per token after the first."""
        if self.num_tokens < 2:
            return None
        return (self.latency_s - self.ttft_s) / (self.num_tokens - 1)


async def timed(backend: Backend, request: GenerateRequest, due: float | None = None) -> Timed:
    """Ask, and time every chunk. An error is a result too. due: of time.monotonic()."""
    from compllm.backend import open_chunks
    from compllm.errors import CompllmError

    start = time.monotonic() if due is None else due
    result = Timed()
    last = 0.0
    try:
        async with open_chunks(backend, request) as chunks:
            async for chunk in chunks:
                now = time.monotonic() - start
                if result.num_tokens == 0 and chunk.num_tokens:
                    result.ttft_s = now
                elif chunk.num_tokens:
                    result.gaps_s.append(now - last)
                last = now
                result.num_tokens += chunk.num_tokens
                result.text += chunk.text
    except CompllmError as error:
        result.error = str(error)
    result.latency_s = time.monotonic() - start
    return result


def prompts(tokenizer: Tokenizer, count: int, num_tokens: int, rng: random.Random) -> list[str]:
    """Texts of about `num_tokens` tokens that share no beginning: seeded words of the
    vocabulary."""
    words = [
        word
        for each in range(1000, min(tokenizer.vocab_size, 20_000))
        if (word := tokenizer.decode([each])).startswith(" ") and word[1:].isalpha()
    ]
    return ["".join(rng.choice(words) for _ in range(num_tokens)).strip() for _ in range(count)]


def random_adapters(base: BaseShape, count: int, seed: int, scale: float = 0.02) -> AdapterWeights:
    """Adapters 1 to `count` on all linear layers: what they say is nonsense, what they cost is not.

    scale: of both factors; at 0.02 texts hardly change, at 0.1 they are nothing alike.
    """
    import numpy as np

    from compllm.formats.adapters import LoraWeights, make_adapter
    from compllm.formats.lora_tensors import to_tensors

    def weights(task_id: int) -> Any:
        if not 1 <= task_id <= count:
            return None
        rng = np.random.default_rng((seed, task_id))
        modules = {
            (layer, module): LoraWeights(
                rng.normal(0, scale, (_RANK, num_in)).astype(np.float16).astype(np.float32),
                rng.normal(0, scale, (num_out, _RANK)).astype(np.float16).astype(np.float32),
            )
            for layer in range(base.num_layers)
            for module, (num_out, num_in) in base.module_shapes().items()
        }
        return to_tensors(make_adapter(f"random-{task_id}", modules))

    made = {task_id: weights(task_id) for task_id in range(1, count + 1)}
    return made.get


def read_metrics(url: str) -> dict[str, float]:
    """Triton's samples by name and, where there is one, the value of the label that is ours."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for name, labels, value in _SAMPLE.findall(text):
        own = [
            each.partition("=")[2].strip('"')
            for each in filter(None, labels.split(","))
            if each.partition("=")[0] not in ("model", "version")
        ]
        found[" ".join([name, *own])] = float(value)
    return found


async def idle_metrics(
    url: str, min_tokens: float = 0.0, timeout_s: float = 30.0
) -> dict[str, float]:
    """The metrics, once the engine shows no active request and that number of generated tokens: it
    publishes them a little after the last answer."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = await asyncio.to_thread(read_metrics, url)
            is_settled = found.get(GENERATED, 0.0) >= min_tokens
            if is_settled and not found.get("nv_trt_llm_request_metrics active"):
                return found


def milliseconds(name: str, seconds: Iterable[float]) -> dict[str, float | None]:
    """p50, p95 and p99 as cells of a table."""
    from benchmarks.report import percentiles

    values = list(seconds)
    if not values:
        return {f"{name}_{key}_ms": None for key in ("p50", "p95", "p99")}
    return {f"{name}_{key}_ms": 1e3 * each for key, each in percentiles(values).items()}
