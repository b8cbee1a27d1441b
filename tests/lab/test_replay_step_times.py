from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest
from path_parts import CATALOGUE
from replay_parts import ClockedBackend

from compllm.backend import Chunk, GenerateRequest
from compllm.errors import BackendError
from compllm.lab.replay.step_times import mean_profile, measure
from compllm.testing import Reply, ScriptedBackend


async def test_the_engines_times_are_found() -> None:
    profile = await measure(ClockedBackend(), CATALOGUE, max_width=4)
    assert dict(profile.step_ms) == pytest.approx({0: 3, 1: 10, 2: 12, 3: 14, 4: 16})
    assert profile.prefill_ms_per_token == pytest.approx(2)
    assert profile.step_time_ms(8) == pytest.approx(24)


async def test_experts_take_turns_and_no_text_comes_twice_unless_warmed() -> None:
    backend = ClockedBackend()
    await measure(backend, CATALOGUE, max_width=2)
    assert {request.adapter_id for request in backend.requests} == {7, 8}
    timed = [each for each in backend.requests if not each.id.endswith("w")]
    assert len({each.prompt for each in timed}) == len(timed)


async def test_a_second_measurement_finds_nothing_of_the_first_in_the_engines_cache() -> None:
    """Both sent the same letters once: from the second on, prefill seemed to take half its time."""
    backend = ClockedBackend()
    await measure(backend, CATALOGUE, max_width=2)
    first = {each.prompt for each in backend.requests}
    backend.requests.clear()
    await measure(backend, CATALOGUE, max_width=2)
    assert not first & {each.prompt for each in backend.requests}


async def test_slow_steps_count() -> None:
    class Hiccups(ClockedBackend):
        """Every second request has steps that take ten times as long."""

        num_decoded = 0

        async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
            async for chunk in super().generate(request):
                usage = chunk.usage
                assert usage is not None
                if request.sampling.min_tokens > 2:
                    self.num_decoded += 1
                    if self.num_decoded % 2 == 0:
                        usage = replace(usage, total_s=usage.first_token_s + 23 * 0.1)
                yield replace(chunk, usage=usage)

    profile = await measure(Hiccups(), CATALOGUE, max_width=2)
    assert dict(profile.step_ms)[1] > 12  # the median is 10


async def test_an_engine_that_tells_no_times_cannot_be_measured() -> None:
    with pytest.raises(BackendError, match="reports no times"):
        await measure(ScriptedBackend(Reply("x")), CATALOGUE)


async def test_two_measurements_have_a_mean() -> None:
    one = await measure(ClockedBackend(), CATALOGUE, max_width=4)
    assert dict(mean_profile(one, one).step_ms) == pytest.approx(dict(one.step_ms))
