"""Which weights of clients the engine takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from compllm.embedded.request import EngineRequest
from compllm.errors import RequestInvalid
from compllm.formats.adapters import Adapter
from compllm.formats.shape import BaseShape
from compllm.frontends.triton.core_tensors import CoreRequest
from compllm.frontends.triton.sent_adapters import SentAdapters

BASE = BaseShape(
    num_layers=2, hidden=8, intermediate=12, num_heads=2, num_kv_heads=1, head_dim=4, vocab=16
)
CONFIG = np.array([[1, 0, 2, 0]], np.int32)
BUILT_IN = np.full((1, 32), 0.25, np.float16)


@dataclass
class Holder:
    loaded: dict[int, Adapter] = field(default_factory=dict)

    @property
    def task_ids(self) -> tuple[int, ...]:
        return tuple(self.loaded)

    def load_adapter(self, task_id: int, adapter: Adapter) -> None:
        self.loaded[task_id] = adapter


def request(task_id: int, weights: Any, config: Any = CONFIG) -> CoreRequest:
    engine = EngineRequest((1,), 1, task_id=task_id)
    return CoreRequest(engine, lora_weights=weights, lora_config=config)


def sent(holder: Holder, *, is_lora_cache: bool = False) -> SentAdapters:
    return SentAdapters(
        holder,
        BASE,
        is_lora_cache=is_lora_cache,
        max_rank=4,
        built_in=lambda task_id: (BUILT_IN, CONFIG) if task_id == 5 else None,
    )


@pytest.mark.parametrize("is_lora_cache", [False, True])
def test_other_weights_under_the_id_of_a_shipped_adapter_are_refused(is_lora_cache: bool) -> None:
    holder = Holder()
    adapters = sent(holder, is_lora_cache=is_lora_cache)
    with pytest.raises(RequestInvalid, match="lora_task_id 5 differ from the adapter"):
        adapters.load(request(5, BUILT_IN * 2))
    assert not holder.loaded
    adapters.load(request(5, BUILT_IN))
    assert 5 in holder.loaded


def test_an_id_keeps_its_content_after_it_was_evicted() -> None:
    holder = Holder()
    adapters = sent(holder)
    adapters.load(request(9, BUILT_IN))
    holder.loaded.clear()
    with pytest.raises(RequestInvalid, match="give other weights another id"):
        adapters.load(request(9, BUILT_IN * 2))
    adapters.load(request(9, BUILT_IN))
    assert 9 in holder.loaded


@pytest.mark.parametrize(
    ("weights", "config"),
    [
        (np.zeros((15, 32)), np.tile(CONFIG, (15, 1))),  # more than seven modules of two layers
        (np.zeros((1, 4 * 20 + 1)), CONFIG),
        (np.zeros((1, 32)), np.array([[1, 0, 5, 0]])),
    ],
)
def test_weights_that_no_adapter_needs_are_refused(weights: Any, config: Any) -> None:
    with pytest.raises(RequestInvalid, match="at most 14 rows of 80 values and rank 4"):
        sent(Holder()).check_size(request(9, weights, config))
