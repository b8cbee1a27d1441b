"""The hostile requests of a soak run, by what is wrong with them.

Each is made of the clients and a generator of numbers; soak_clients.py sends it.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from benchmarks.load.soak_clients import PATH, Clients, Question
from compllm.backends import wire

_EXTREMES = (
    ("repetition_penalty", 1e-40),
    ("frequency_penalty", -3e38),
    ("presence_penalty", float("inf")),
    ("temperature", 1e38),
    ("temperature", float("nan")),
    ("runtime_top_p", -1.0),
)


def _plain(clients: Clients, rng: random.Random, adapter_id: int | None = None) -> Any:
    question = Question("engine", f"Why {rng.randrange(10**6)}?", None, adapter_id)
    return clients.engine_message(question)


def _with(message: Any, name: str, values: Any, dtype: type[np.generic]) -> Any:
    """The message with this input, in the place of the one of that name."""
    changed = service_pb2.ModelInferRequest(model_name=message.model_name, id=message.id)
    for known, raw in zip(message.inputs, message.raw_input_contents, strict=True):
        if known.name != name:
            changed.inputs.append(known)
            changed.raw_input_contents.append(raw)
    wire.add_array(changed, name, values, dtype)
    return changed


def _extreme_sampling(clients: Clients, rng: random.Random) -> Any:
    name, value = rng.choice(_EXTREMES)
    message = _with(_plain(clients, rng), "runtime_top_p", [[0.9]], np.float32)
    return _with(message, name, [[value]], np.float32)


def _bad_adapter(clients: Clients, rng: random.Random) -> Any:
    message = _plain(clients, rng, rng.randrange(1, 2**53))
    if rng.random() < 0.5:  # weights that fit no module
        wire.add_array(message, "lora_weights", np.ones((1, 4, 64)), np.float16)
        wire.add_array(message, "lora_config", [[[0, 0, 99, 0]] * 4], np.int32)
    return message


def _huge_guide(clients: Clients, rng: random.Random) -> Any:
    patterns = [{"pattern": f"^(.*{rng.choice('abc')}.{{{n}}}.*)?$"} for n in range(60)]
    guides = (
        ("json_schema", json.dumps({"type": "string", "allOf": patterns})),
        ("regex", f"(([a-z]{{1,{rng.randrange(90, 110)}}}){{1,99}}){{1,99}}"),
        ("regex", f"[0-9{rng.randrange(10)}"),
        ("ebnf_grammar", f'root ::= "a"{{0,{rng.randrange(40_000, 60_000)}}}'),
    )
    kind, text = rng.choice(guides)
    message = _plain(clients, rng)
    wire.add_texts(message, "guided_decoding_guide_type", [kind], (1, 1))
    wire.add_texts(message, "guided_decoding_guide", [text], (1, 1))
    return message


def _wrong_shape(clients: Clients, rng: random.Random) -> Any:
    name, values = rng.choice(
        [
            ("input_ids", np.ones((2, 3))),
            ("input_ids", np.full((1, 3), -7)),
            ("input_lengths", [[99_999]]),
            ("request_output_len", [[1, 2, 3]]),
            ("request_output_len", [[-1]]),
            ("stop_words_list", [[[5, 6], [9, -1]]]),
        ]
    )
    return _with(_plain(clients, rng), name, values, np.int32)


def _too_long(clients: Clients, rng: random.Random) -> Any:
    message = _plain(clients, rng)
    length = rng.randrange(20_000, 60_000)
    message = _with(message, "input_ids", np.full((1, length), 5), np.int32)
    return _with(message, "input_lengths", [[length]], np.int32)


def _bad_question(clients: Clients, rng: random.Random) -> Any:
    message = service_pb2.ModelInferRequest(model_name=PATH, id="hostile")
    text = rng.choice(["", "why? " * 2000, "\u6c34" * 8000, "<|im_end|>" * 700])
    wire.add_texts(message, "text_input", [text], (1, 1))
    if rng.random() < 0.5:
        wire.add_array(message, "temperature", [[float("nan")]], np.float32)
    wire.add_array(message, "deadline_ms", [[20_000]], np.int32)
    return message


HOSTILE: Mapping[str, Callable[[Clients, random.Random], Any]] = {
    "sampling out of bounds": _extreme_sampling,
    "unknown adapter": _bad_adapter,
    "huge guide": _huge_guide,
    "wrong shape": _wrong_shape,
    "prompt too long": _too_long,
    "bad question": _bad_question,
}


def endings(found: Sequence[tuple[str, str]]) -> dict[str, Counter[str]]:
    """How often each kind of hostile request ended how."""
    counted: dict[str, Counter[str]] = {}
    for kind, ending in found:
        counted.setdefault(kind, Counter())[ending] += 1
    return counted
