"""Config and catalogue as parts: the limits of the queues in front of the engines."""

from __future__ import annotations

import pytest
from path_parts import CATALOGUE, settings

from compllm.assembly import UNKNOWN_LIMIT, make_engine
from compllm.backend import Backend
from compllm.testing import ScriptedBackend


class Batching(ScriptedBackend):
    """Reports how many requests its engine batches."""

    def max_batch_size(self, model: str) -> int | None:
        return 4 if model == "tensorrt_llm" else None


@pytest.mark.parametrize(
    ("backend", "max_in_flight", "limit"),
    [
        (Batching(), 0, 4),
        (Batching(), 7, 7),
        (ScriptedBackend(), 0, UNKNOWN_LIMIT),
    ],
)
def test_a_configured_limit_counts_before_what_the_engine_batches(
    backend: Backend, max_in_flight: int, limit: int
) -> None:
    config = settings(limits__max_in_flight=max_in_flight)
    engine = make_engine(backend, CATALOGUE, config)
    assert engine.admission.load("tensorrt_llm").limit == limit
