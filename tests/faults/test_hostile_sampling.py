"""10. One request with extreme sampling values: the engine ended for all users."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import psutil
import pytest
from core_client import Refused, infer, scalars

from compllm.server.health import is_ready
from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton

NAMES = (
    *("temperature", "runtime_top_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty"),
)
VALUES = (
    *(0.0, 1e-45, 1e-40, 1e-7, 0.001, 0.5, 1.0, 1000.0, 1001.0, 1e38, 3.4e38),
    *(-1e-40, -1.0, -1000.0, -3e38, float("inf"), float("-inf"), float("nan")),
)


def stubs(server: ServerInfo) -> set[int]:
    return {each.pid for each in psutil.Process(server.server_pid).children()}


@pytest.mark.parametrize(
    ("extreme", "name"),
    [
        ({"repetition_penalty": 1e-40, "runtime_top_p": 0.9}, "repetition_penalty"),
        ({"frequency_penalty": -3e38, "runtime_top_p": 0.9}, "frequency_penalty"),
        ({"presence_penalty": float("inf")}, "presence_penalty"),
        ({"temperature": float("nan"), "runtime_top_p": 0.9}, "temperature"),
    ],
)
def test_one_request_with_extreme_values_ends_alone(
    server: ServerInfo, extreme: dict[str, float], name: str
) -> None:
    before, processes = infer(server), stubs(server)
    with pytest.raises(Refused, match=rf"{name} is .*: it must be a number from"):
        infer(server, scalars(np.float32, **extreme))
    assert is_ready(server)
    assert infer(server) == before
    assert stubs(server) == processes


@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.long)])
def test_any_sampling_values_end_in_an_answer_or_a_reason(server: ServerInfo, count: int) -> None:
    draw, before, processes = random.Random(0), infer(server), stubs(server)
    endings = Counter[str]()
    for _ in range(count):
        values = {each: draw.choice(VALUES) for each in draw.sample(NAMES, draw.randint(1, 4))}
        tensors: dict[str, Any] = scalars(np.float32, **values)
        tensors |= scalars(np.int32, runtime_top_k=draw.choice((0, 1, 2, 50, 2**31 - 1, -1)))
        try:
            endings[f"{len(infer(server, tensors))} tokens"] += 1
        except Refused as error:
            endings["a reason" if " must be " in str(error) else str(error)] += 1
    assert set(endings) == {"8 tokens", "a reason"}
    assert infer(server) == before
    assert stubs(server) == processes
