"""17. The clock is set by a second: a live server looked dead, and `up` killed it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from compllm.server import triton_server

pytestmark = pytest.mark.triton


def test_a_clock_that_is_set_does_not_make_a_server_look_dead(
    engine_dir: Path, fresh_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`up` killed a live server after the clock had been set by a second."""
    info = triton_server.up(engine_dir)
    # Start times of processes are reckoned from it. gRPC's deadlines need `time.time` as it is.
    monkeypatch.setattr(psutil, "boot_time", lambda: 0.0)
    assert triton_server.up(engine_dir) == info
