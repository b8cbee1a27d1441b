"""Helpers for tests and benchmarks of the embedded engine: build one, drive it, and ask
transformers the same.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compllm.build_scripts.build_openvino import AdapterSource, build_engine
from compllm.embedded.executor import Executor
from compllm.embedded.request import EngineEvent, EngineRequest


def make_engine(checkpoint: Path, out: Path, dtype: str, adapters: Mapping[str, Path]) -> Path:
    """An engine directory with these PEFT directories, by name."""
    build_engine(checkpoint, [AdapterSource(d, n) for n, d in adapters.items()], out, dtype)
    return out


@dataclass
class Collected:
    """Everything one request got back."""

    token_ids: list[int] = field(default_factory=list)
    events: list[EngineEvent] = field(default_factory=list)

    @property
    def last(self) -> EngineEvent:
        return self.events[-1]


class Run:
    """Requests on their way; `wait` gives what came back, in the order they were submitted."""

    def __init__(self, engine: Executor, requests: Sequence[EngineRequest]) -> None:
        self._done = threading.Semaphore(0)
        self.results = [Collected() for _ in requests]
        self.first_events = [threading.Event() for _ in requests]
        self.handles = [
            engine.submit(request, self._collector(place)) for place, request in enumerate(requests)
        ]

    def _collector(self, place: int):  # type: ignore[no-untyped-def]
        def collect(event: EngineEvent) -> None:
            self.results[place].events.append(event)
            self.results[place].token_ids += event.token_ids
            self.first_events[place].set()
            if event.is_final:
                self._done.release()

        return collect

    def wait(self, timeout_s: float = 120.0) -> list[Collected]:
        for _ in self.results:
            assert self._done.acquire(timeout=timeout_s), "a request never ended"
        return self.results


def generate(engine: Executor, requests: Sequence[EngineRequest]) -> list[Collected]:
    return Run(engine, requests).wait()


@dataclass(frozen=True)
class Reference:
    """Greedy tokens of transformers (+ PEFT) in float32, the gap to the second best at each of
    them, and its log-probability.
    """

    token_ids: list[int]
    margins: list[float]
    log_probs: list[float]

    def parting(self, token_ids: Sequence[int]) -> int | None:
        """The first place where `token_ids` differs, None when it does not."""
        for place, (ours, theirs) in enumerate(zip(token_ids, self.token_ids, strict=True)):
            if ours != theirs:
                return place
        return None


def reference(
    checkpoint: Path, adapter: Path | None, prompts: Sequence[Sequence[int]], num_tokens: int
) -> list[Reference]:
    """What the fp16 weights say: rounded to half, then all is computed in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.half().float()
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()
    results = []
    for prompt in prompts:
        ids, past = torch.tensor([list(prompt)]), None
        tokens, margins, log_probs = [], [], []
        with torch.inference_mode():
            for _ in range(num_tokens):
                out = model(input_ids=ids, past_key_values=past, use_cache=True)
                best = torch.topk(out.logits[0, -1], 2)
                tokens.append(int(best.indices[0]))
                margins.append(float(best.values[0] - best.values[1]))
                log_probs.append(float(out.logits[0, -1].log_softmax(-1)[tokens[-1]]))
                ids, past = best.indices[:1][None], out.past_key_values
        results.append(Reference(tokens, margins, log_probs))
    return results


def random_prompts(
    vocab: int, count: int, seed: int, low: int = 3, high: int = 70
) -> list[tuple[int, ...]]:
    """Token ids of many lengths, some longer than a cache block or a prefill chunk."""
    rng = np.random.default_rng(seed)
    return [
        tuple(int(i) for i in rng.integers(10, vocab, rng.integers(low, high)))
        for _ in range(count)
    ]
