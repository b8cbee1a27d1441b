"""LoRA through the engine's cache: first use, later uses, eviction and its texts, a mixed batch."""

from __future__ import annotations

import re

from compllm.backends.wire import AdapterTensors
from compllm.build_scripts.smoke.checks import (
    Bench,
    Check,
    Failed,
    Skipped,
    error_of,
    expect,
    flag,
    ids64,
    number,
    request,
    whole,
)
from compllm.build_scripts.smoke.client import Array, Response
from compllm.plural import counted

# What the runtime's client matches on; another wording would break its resends.
MISSING = re.compile(r"LoRA task (\d+) not found in cache. Please send LoRA weights with request")
_STRANGER = 2**40 + 7  # a task id that no adapter has
_MAX_COPIES = 60  # adapters of new ids, to push the first out
_EACH = 4  # requests of each adapter in the mixed batch
_MIXED_TOKENS = (24, 200)


def lora(task_id: int, weights: AdapterTensors | None = None) -> dict[str, Array]:
    """The inputs of a request of this adapter."""
    inputs = {"lora_task_id": ids64(task_id)}
    if weights is not None:
        inputs["lora_weights"] = weights[0][None]
        inputs["lora_config"] = weights[1][None]
    return inputs


def _some(bench: Bench) -> dict[int, AdapterTensors]:
    if not bench.adapters:
        raise Skipped("no adapters: give --adapters, where this model has any")
    return bench.adapters


def _unknown(bench: Bench) -> str:
    _some(bench)
    told = error_of(bench.ask(request(bench.prompt(), 2, **lora(_STRANGER))), "an unknown task id")
    found = MISSING.search(told)
    expect(found is not None and found[1] == str(_STRANGER), f"other words: {told}")
    return told


def _first_use(bench: Bench) -> str:
    prompt, differing = bench.prompt(), 0
    plain = whole(bench.ask(request(prompt, 8)))
    for task_id, weights in _some(bench).items():
        first = whole(bench.ask(request(prompt, 8, **lora(task_id, weights))))
        later = whole(bench.ask(request(prompt, 8, **lora(task_id))))
        expect(first == later, f"adapter {task_id}: {first} with its weights, {later} by its id")
        differing += first != plain
    expect(differing > 0, "no adapter changed a single token: are they applied?")
    return f"{counted(len(bench.adapters), 'adapter')}, {differing} with other tokens than the base"


def _incomplete(bench: Bench) -> str:
    weights = next(iter(_some(bench).values()))
    inputs = lora(_STRANGER + 1, weights)
    del inputs["lora_config"]
    return error_of(bench.ask(request(bench.prompt(), 2, **inputs)), "weights alone")[:160]


def _bad_rank(bench: Bench) -> str:
    weights, config = next(iter(_some(bench).values()))
    wrong = config.copy()
    wrong[:, 2] = 4096
    inputs = lora(_STRANGER + 2, (weights, wrong))
    told = error_of(bench.ask(request(bench.prompt(), 2, **inputs)), "rank 4096")
    whole(bench.ask(request(bench.prompt(), 2)))
    return told[:160]


def _apart(bench: Bench) -> str:
    task_id, weights = next(iter(_some(bench).items()))
    prompt, perf = bench.prompt(200), {"return_perf_metrics": flag(True)}
    whole(bench.ask(request(prompt, 2)))
    answer = bench.ask(request(prompt, 2, **perf, **lora(task_id, weights)))
    whole(answer)
    reused = number(answer, "kv_cache_reused_blocks")
    expect(reused == 0, f"{reused} blocks of the base were reused for an adapter")
    return "an adapter reuses no block that the base has filled"


def _mixed(bench: Bench) -> str:
    adapters = _some(bench)
    prompts = [bench.prompt() for _ in range(_EACH)]
    perf = {"return_perf_metrics": flag(True)}
    inputs = [{}, *(lora(task_id, weights) for task_id, weights in adapters.items())]
    told = ""
    # A small model has ended the first before the weights of the second are read: then longer ones.
    for num_tokens in _MIXED_TOKENS:
        requests = [
            request(prompt, num_tokens, **perf, **each) for prompt in prompts for each in inputs
        ]
        alone = [whole(bench.ask(each)) for each in requests]
        answers = bench.ask_all(requests)
        together = [whole(each) for each in answers]
        # In half precision another batch may round otherwise: the first tokens must be the same,
        # the later ones mostly are.
        first = sum(a[0] == b[0] for a, b in zip(alone, together, strict=True))
        same = sum(a == b for a, b in zip(alone, together, strict=True))
        told = f"{same} of {len(requests)} whole answers as alone, {first} first tokens"
        expect(first >= 0.9 * len(requests), told)
        mixed = _most_at_once(answers, len(inputs))
        if mixed >= 2:
            return f"{told}, {mixed} of {len(inputs)} kinds at a time"
    raise Failed(f"{told}, but never two kinds of requests at a time")


def _most_at_once(answers: list[list[Response]], num_kinds: int) -> int:
    """Of base and adapters, dealt out in turn, how many the engine worked on at the same moment, by
    its own times."""
    spans = [
        (number(each, "first_scheduled_time_ns"), number(each, "last_token_time_ns"))
        for each in answers
    ]
    kinds = [place % num_kinds for place in range(len(spans))]
    moments = [start for start, _ in spans]
    return max(
        len({kind for kind, (start, end) in zip(kinds, spans, strict=True) if start <= at < end})
        for at in moments
    )


def _eviction(bench: Bench) -> str:
    weights = next(iter(_some(bench).values()))
    first = _STRANGER + 100
    prompt = bench.prompt()
    expected = whole(bench.ask(request(prompt, 4, **lora(first, weights))))
    num_copies, more = 0, 4
    while num_copies < _MAX_COPIES:
        for _ in range(more):
            num_copies += 1
            whole(bench.ask(request(prompt, 1, **lora(first + num_copies, weights))))
        again = bench.ask(request(prompt, 4, **lora(first)))
        if again[-1].error:
            break
        more *= 2  # asked for, it is the youngest again: only more than the last time push it out
    else:
        raise Skipped(f"the cache held the first of {num_copies + 1} adapters")
    expect(MISSING.search(again[-1].error) is not None, f"other words: {again[-1].error}")
    resent = whole(bench.ask(request(prompt, 4, **lora(first, weights))))
    expect(resent == expected, "sent again it answers differently")
    return f"evicted by at most {more} more adapters, with the text that the client matches on"


CHECKS = (
    Check("unknown adapter", "the error has the text that makes the client resend", _unknown),
    Check("adapter by id", "weights on first use (fp16, 4 columns), the id later", _first_use),
    Check("half an adapter", "weights without lora_config are refused", _incomplete),
    Check("wrong rank", "a rank above the engine's is refused, and the server lives", _bad_rank),
    Check("adapters apart", "adapters share no KV blocks with the base", _apart),
    Check("mixed batch", "base and adapters in one batch answer as they do alone", _mixed),
    Check("eviction", "an evicted adapter is missed with the same text", _eviction),
)
