"""bench_replay without an engine: what it keeps of a replay's record."""

from __future__ import annotations

import pytest
from benchmarks.path.bench_replay import shapes, slim
from path_parts import CATALOGUE, settings

from compllm.lab.engine_profile import EngineProfile
from compllm.lab.replay.drive import Ran, ReplaySettings, replay
from compllm.lab.replay.runner import ReplayLLM
from compllm.testing import HashingEncoder, Reply, ScriptedBackend

PROFILE = EngineProfile("test", ((0, 0.0), (1, 10.0), (8, 24.0)), 2.0)


@pytest.mark.parametrize("policy", ["sequential", "dataflow"])
async def test_no_speed_up_over_a_sequential_time_that_nobody_measured(policy: str) -> None:
    """It stood beside the measured one, and was taken for it."""
    given = ReplaySettings(policy, overhead="none")  # type: ignore[arg-type]
    ran: list[Ran] = []
    backend, config = ScriptedBackend(Reply("a response")), settings(compose__policy="never")
    async with ReplayLLM(backend, HashingEncoder(), CATALOGUE, config) as llm:
        await replay(llm, shapes()[:1], given, ran.append)
    record = slim(ran[0], given, PROFILE)
    assert "reached_of_bound" in record
    assert not {"reached_speedup", "reached_of_structural"} & record.keys()
    assert record["sequential_is"] == ("measured" if policy == "sequential" else "estimated")
