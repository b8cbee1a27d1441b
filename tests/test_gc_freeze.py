"""gc_freeze: the collector leaves out the objects of start-up and still walks later ones."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from compllm.gc_freeze import freeze_startup_objects


class Thing:
    other: Thing


@pytest.fixture(autouse=True)
def _unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_start_up_made_is_not_walked_again() -> None:
    """A full collection took 28 ms, in the middle of a query."""
    assert len(gc.get_objects()) > 1000
    freeze_startup_objects()
    assert len(gc.get_objects()) < 100


def test_garbage_of_later_is_still_collected() -> None:
    freeze_startup_objects()
    one, two = Thing(), Thing()
    one.other, two.other = two, one
    gone = weakref.ref(one)
    del one, two
    gc.collect()
    assert gone() is None
