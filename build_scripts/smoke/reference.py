"""Greedy answers beside another engine's: a wrong rotary base or a lost adapter changes them.

`smoke_triton.py --record FILE` asks an embedded engine, on any machine; `--reference FILE` then
compares a GPU's engine with the file, the base and adapter by adapter.
"""

from __future__ import annotations

from typing import Any

from compllm.backends.wire import AdapterTensors
from compllm.build_scripts.smoke.adapters import lora
from compllm.build_scripts.smoke.checks import Bench, Check, Skipped, expect, request, whole
from compllm.errors import ConfigError
from compllm.prompts import CHATML, chat

FORMAT = "compllm-smoke-reference/1"
_QUESTIONS = (
    "What is the atomic number of iron?",
    "What is the symbol of sodium?",
    "How many chromosomes does a human cell have?",
    "Which amino acid does the codon A U G encode?",
    "What is 12 times 3?",
    "What is the capital of France?",
    # Far positions: a rotary base that is wrong shows most there.
    "The numbers are " + ", ".join(map(str, range(1, 61))) + ". What is the last of them?",
    "Read this: " + "the cell divides and grows; " * 20 + "what divides?",
)
_NUM_TOKENS = 8
# Of first tokens: weights of 8 bits on one side, other sums in half precision on the other.
_LEAST = 0.75


def record(bench: Bench) -> dict[str, Any]:
    """The answers of this server. Raises ConfigError without a tokenizer."""
    return {"format": FORMAT, "answers": _answers(bench)}


def _answers(bench: Bench) -> dict[str, list[list[int]]]:
    """Tokens by question, of the base and of each adapter by its task id."""
    tokenizer = bench.tokenizer
    if tokenizer is None:
        raise ConfigError("no tokenizer: give --tokenizer")
    prompts = [tokenizer.encode(chat(CHATML, [("user", text)])) for text in _QUESTIONS]
    kinds: dict[str, dict[str, Any]] = {"base": {}}
    kinds |= {str(task_id): _with(task_id, each) for task_id, each in bench.adapters.items()}
    return {
        name: [whole(bench.ask(request(prompt, _NUM_TOKENS, **more))) for prompt in prompts]
        for name, more in kinds.items()
    }


def _with(task_id: int, weights: AdapterTensors) -> dict[str, Any]:
    return dict(lora(task_id, weights))


def _compared(bench: Bench) -> str:
    if bench.reference is None:
        raise Skipped("no reference: record one on an embedded server, and give --reference")
    expected = bench.reference.get("answers", {})
    told = []
    for name, answers in _answers(bench).items():
        if name not in expected:
            told.append(f"{name}: not in the reference")
            continue
        pairs = list(zip(answers, expected[name], strict=True))
        first = sum(one[:1] == two[:1] for one, two in pairs) / len(pairs)
        same = sum(one == two for one, two in pairs)
        told.append(f"{name}: {first:.0%} first tokens, {same} of {len(pairs)} whole answers")
        expect(first >= _LEAST, f"{told[-1]}: other weights, or other rotary positions?")
    expect(bool(expected.keys() & {"base"}), "the reference holds no answers of a base")
    return "; ".join(told)


CHECKS = (Check("as the reference", "greedy answers are the embedded engine's", _compared),)
