"""The Triton model of the engine, with an engine double."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from core_doubles import BASE, FakeEngine

from compllm.frontends.triton.core_serving import CoreModel


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def model(engine: FakeEngine) -> Iterator[CoreModel]:
    model = CoreModel(engine, BASE, cancellation_check_period_s=0.001)
    yield model
    engine.submitted.clear()  # whatever a test left open
    model.close()
