"""9. The same seed drew other tokens in a batch than alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from core_client import infer, scalars

from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton


def test_a_seed_draws_the_same_tokens_alone_and_among_others(
    server: ServerInfo, task_ids: dict[str, int]
) -> None:
    """At temperature 1, with both adapters in the batch."""
    adapters = (None, *task_ids.values())
    asked: list[dict[str, Any]] = []
    for seed in range(24):
        tensors = scalars(np.float32, temperature=1.0, runtime_top_p=1.0)
        tensors |= scalars(np.uint64, seed=seed)
        if (task_id := adapters[seed % len(adapters)]) is not None:
            tensors |= scalars(np.uint64, lora_task_id=task_id)
        asked.append(tensors)
    alone = [infer(server, tensors, max_tokens=24) for tensors in asked]
    assert len({tuple(ids) for ids in alone}) == len(alone)
    with ThreadPoolExecutor(len(asked)) as threads:
        together = threads.map(lambda tensors: infer(server, tensors, max_tokens=24), asked)
        assert list(together) == alone
