"""Trials of clients' guides: what is too costly ends there, and not in the engine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compllm.embedded.guide_trial import GuideTrial
from compllm.errors import EngineClosed, RequestInvalid

VOCAB = 49152


@pytest.fixture(scope="module")
def trial(base_dir: Path) -> Iterator[GuideTrial]:
    trial = GuideTrial(base_dir, VOCAB, [2])
    yield trial
    trial.close()


def test_a_usual_guide_passes_and_a_wrong_one_is_named(trial: GuideTrial) -> None:
    assert trial.try_out("json_schema", '{"type": "object"}') >= 0
    with pytest.raises(RequestInvalid, match="Invalid type: foo"):
        trial.try_out("json_schema", '{"type": "foo"}')


def test_a_schema_of_many_patterns_ends_with_the_process(trial: GuideTrial) -> None:
    """3 KB that compiled for 4.5 minutes and reached 15 GB."""
    patterns = [{"pattern": f"^(.*a.{{{number}}}.*)?$"} for number in range(60)]
    schema = json.dumps({"type": "string", "allOf": patterns})
    for _ in range(2):
        with pytest.raises(RequestInvalid, match="too costly: compiling it takes more than"):
            trial.try_out("json_schema", schema)
    started = time.monotonic()
    with pytest.raises(RequestInvalid, match="too costly"):
        trial.try_out("json_schema", schema)
    assert time.monotonic() - started < 0.1  # it is remembered
    assert trial.try_out("regex", "[0-9]+") >= 0  # by another process


def test_a_closed_trial_starts_no_process(base_dir: Path) -> None:
    trial = GuideTrial(base_dir, VOCAB, [2])
    trial.close()
    with pytest.raises(EngineClosed, match="shut down"):
        trial.try_out("regex", "[0-9]+")
