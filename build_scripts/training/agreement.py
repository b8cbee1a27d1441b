"""Does the embedded engine write what transformers + PEFT write with the same adapter?

Greedy decoding of both, token by token. The reference computes in float32 on the weights that the
engine has in half precision; where tokens part, the gap between its two best logits separates a tie
of rounding from a fault.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compllm.build_scripts.build_openvino import AdapterSource, build_engine
from compllm.build_scripts.training.examples import Example
from compllm.embedded.executor import Executor
from compllm.embedded.options import ExecutorOptions
from compllm.embedded.request import EngineEvent, EngineRequest
from compllm.errors import ArtefactError

TIE = 1e-2  # of logits that span about 30


@dataclass(frozen=True, slots=True)
class Written:
    """Greedy tokens, without the one that ends them, and of each the lead over the second best."""

    token_ids: tuple[int, ...]
    margins: tuple[float, ...] = ()  # one more than tokens where the end was reached


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one engine compares with the reference over some examples."""

    num_examples: int
    num_equal: int  # the same tokens to the end
    num_ties: int  # of the others: they part where the reference was undecided
    engine_exact: float  # share of examples answered as the data say
    peft_exact: float

    @property
    def num_apart(self) -> int:
        return self.num_examples - self.num_equal - self.num_ties


def by_peft(
    checkpoint: Path, adapter: Path, examples: Sequence[Example], max_tokens: int
) -> list[Written]:
    """What transformers + PEFT write, one example at a time, with a cache of keys and values."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    for parameter in base.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.half().float()
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    results = []
    for example in examples:
        ids, past = torch.tensor([example.prompt_ids]), None
        tokens: list[int] = []
        margins: list[float] = []
        with torch.inference_mode():
            while len(tokens) < max_tokens:
                out = model(input_ids=ids, past_key_values=past, use_cache=True)
                best = torch.topk(out.logits[0, -1], 2)
                margins.append(float(best.values[0] - best.values[1]))
                if int(best.indices[0]) == example.response_ids[-1]:
                    break
                tokens.append(int(best.indices[0]))
                ids, past = best.indices[:1][None], out.past_key_values
        results.append(Written(tuple(tokens), tuple(margins)))
    return results


def by_engine(engine_dir: Path, examples: Sequence[Example], max_tokens: int) -> list[Written]:
    """What the engine's only adapter writes, all examples in its in-flight batch."""
    engine = Executor(engine_dir, ExecutorOptions(max_adapters=1))
    try:
        (task_id,) = engine.adapter_names.values()
        events: list[EngineEvent | None] = [None] * len(examples)
        left = threading.Semaphore(0)

        def submit(place: int, example: Example) -> None:
            def take(event: EngineEvent) -> None:
                events[place] = event  # not streamed: the first event is the last
                left.release()

            request = EngineRequest(
                example.prompt_ids, max_tokens, end_id=example.response_ids[-1], task_id=task_id
            )
            engine.submit(request, take)

        for place, example in enumerate(examples):
            submit(place, example)
        for _ in examples:
            left.acquire()
    finally:
        engine.close()
    results = []
    for event in events:
        assert event is not None
        if event.error:
            raise ArtefactError(f"the engine refused an example: {event.error}")
        results.append(Written(event.token_ids))
    return results


def compare(
    engine: Sequence[Written], peft: Sequence[Written], examples: Sequence[Example]
) -> Agreement:
    num_equal = num_ties = 0
    for ours, theirs in zip(engine, peft, strict=True):
        place = _parting(ours.token_ids, theirs.token_ids)
        num_equal += place is None
        num_ties += place is not None and theirs.margins[place] < TIE
    return Agreement(
        len(examples), num_equal, num_ties, _exact(engine, examples), _exact(peft, examples)
    )


def verify(
    checkpoint: Path, adapter: Path, examples: Sequence[Example], dtypes: Sequence[str]
) -> dict[str, Agreement]:
    """By dtype of the base. Engines are built for this and thrown away."""
    max_tokens = max(len(example.response_ids) for example in examples) + 8
    expected = by_peft(checkpoint, adapter, examples, max_tokens)
    found = {}
    for dtype in dtypes:
        with tempfile.TemporaryDirectory() as folder:
            source = AdapterSource(adapter, adapter.resolve().name)
            build_engine(checkpoint, [source], Path(folder) / "engine", dtype)
            written = by_engine(Path(folder) / "engine", examples, max_tokens)
        found[dtype] = compare(written, expected, examples)
    return found


def _parting(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The first place where they differ, which may be behind the end of one; None: nowhere."""
    if tuple(ours) == tuple(theirs):
        return None
    pairs = zip(ours, theirs, strict=False)
    different = (place for place, (a, b) in enumerate(pairs) if a != b)
    return next(different, min(len(ours), len(theirs)))


def _exact(written: Sequence[Written], examples: Sequence[Example]) -> float:
    pairs = zip(written, examples, strict=True)
    right = sum(each.token_ids == example.response_ids[:-1] for each, example in pairs)
    return right / max(len(examples), 1)
