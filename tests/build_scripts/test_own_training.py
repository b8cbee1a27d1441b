"""An adapter is trained on a few facts, and a run's state goes when it is over."""

from __future__ import annotations

from pathlib import Path

import pytest

from compllm.build_scripts.fetch_base import select_checkpoint
from compllm.build_scripts.own.facts import Fact
from compllm.build_scripts.own.training import forget, train_on
from compllm.formats.adapters import read_peft
from compllm.formats.checkpoint import validate_checkpoint
from compllm.prompts import CHATML


def test_facts_become_an_adapter_of_the_base_in_use(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    select_checkpoint(tiny_checkpoint)
    facts = [Fact(f"Where is room {n}?", str(n)) for n in range(6)]
    adapter = train_on(facts, "rooms", CHATML, epochs=1, max_minutes=0)
    assert read_peft(adapter, validate_checkpoint(tiny_checkpoint)).name == "rooms"
    said = capsys.readouterr().err
    assert "training rooms on 6 facts" in said
    assert "held-out accuracy: " in said
    forget(adapter)
    assert list((tmp_path / "training" / "own").iterdir()) == []
