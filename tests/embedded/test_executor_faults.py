"""The engine under hostile requests: what goes wrong with one must not reach another."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import Run, generate, make_engine, random_prompts
from helpers import MakeAdapter

from compllm.embedded.executor import Executor
from compllm.embedded.guide import Guide
from compllm.embedded.options import ExecutorOptions
from compllm.embedded.request import EngineRequest, EngineSampling
from compllm.errors import INVALID, UNAVAILABLE, AdapterUnknown, EngineClosed
from compllm.formats.adapters import read_peft
from compllm.formats.checkpoint import validate_checkpoint

OPTIONS = ExecutorOptions(kv_cache_tokens=4096, max_num_tokens=48, max_adapters=3)
PLAIN = EngineRequest((5, 6, 7), 12)
END = 2


@pytest.fixture(scope="module")
def adapter_dir(tiny_checkpoint: Path, make_adapter: MakeAdapter) -> Path:
    return make_adapter(tiny_checkpoint, "wide", scale=0.5, rank=4, seed=2)


@pytest.fixture(scope="module")
def engine_dir(
    tiny_checkpoint: Path, adapter_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("engine") / "e"
    return make_engine(tiny_checkpoint, out, "fp16", {"wide": adapter_dir})


@pytest.fixture
def engine(engine_dir: Path) -> Iterator[Executor]:
    engine = Executor(engine_dir, OPTIONS)
    yield engine
    engine.close()


def break_steps(engine: Executor, patch: pytest.MonkeyPatch, times: int) -> None:
    """Let the next steps raise."""
    run, left = engine.runner.run, [times]

    def broken(step: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("out of order")
        return run(step)

    patch.setattr(engine.runner, "run", broken)


@pytest.mark.parametrize(
    "sampling",
    [
        EngineSampling(top_k=0, top_p=0.9, repetition_penalty=1e-40),
        EngineSampling(top_k=0, top_p=0.9, frequency_penalty=-3e38),
        EngineSampling(top_k=0, temperature=1e38),
    ],
)
def test_extreme_sampling_values_are_refused_and_the_engine_goes_on(
    engine: Executor, sampling: EngineSampling
) -> None:
    event = generate(engine, [dataclasses.replace(PLAIN, sampling=sampling)])[0].last
    assert event.situation is INVALID
    assert "it must be a number from" in (event.error or "")
    assert generate(engine, [PLAIN])[0].last.finish_reason == "length"


def test_a_step_that_fails_ends_what_runs_and_the_engine_starts_anew(
    engine: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = generate(engine, [PLAIN])[0].token_ids
    break_steps(engine, monkeypatch, 1)
    event = generate(engine, [PLAIN])[0].last
    assert event.situation is UNAVAILABLE
    assert event.error == "the engine failed in a step (out of order): try again"
    assert generate(engine, [PLAIN])[0].token_ids == whole
    stats = engine.stats()
    assert (stats.num_failures, stats.failure, stats.kv_blocks_used) == (1, None, 0)


def test_an_engine_that_keeps_failing_is_dead_and_says_why(
    engine: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(engine, monkeypatch, 3)
    for _ in range(3):
        assert generate(engine, [PLAIN])[0].last.situation is UNAVAILABLE
    event = generate(engine, [PLAIN])[0].last
    assert event.situation is UNAVAILABLE
    assert "failed in 3 steps one after another (out of order)" in (event.error or "")
    assert engine.stats().failure == event.error
    with pytest.raises(EngineClosed, match="out of order"):
        engine.remove_adapter(engine.task_ids[0])


def test_a_client_that_cannot_be_told_ends_alone(engine: Executor) -> None:
    def broken(event: Any) -> None:
        raise OSError("its channel is gone")

    engine.submit(dataclasses.replace(PLAIN, is_streamed=True), broken)
    assert generate(engine, [PLAIN])[0].last.finish_reason == "length"
    assert engine.stats().num_failures == 0


def test_an_adapter_that_cannot_be_set_is_not_there(
    engine: Executor,
    adapter_dir: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(slot: int, adapter: Any) -> None:
        raise MemoryError("no room")

    adapter = read_peft(adapter_dir, validate_checkpoint(tiny_checkpoint), "late")
    monkeypatch.setattr(engine.runner, "set_adapter", broken)
    with pytest.raises(MemoryError, match="no room"):
        engine.load_adapter(9, adapter)
    assert 9 not in engine.task_ids
    with pytest.raises(AdapterUnknown):
        engine.remove_adapter(9)
    assert generate(engine, [PLAIN])[0].last.finish_reason == "length"


@pytest.mark.parametrize("kv_cache_tokens", [5, 33, 100])
def test_the_longest_request_fits_into_the_blocks_that_there_are(
    engine_dir: Path, kv_cache_tokens: int
) -> None:
    """33 promised a token more than one block of 32 holds: such a request waited for ever."""
    engine = Executor(engine_dir, dataclasses.replace(OPTIONS, kv_cache_tokens=kv_cache_tokens))
    try:
        longest = EngineRequest((5,) * (engine.max_seq_len - 4), 4)
        assert engine.max_seq_len % 32 == 0
        too_long = dataclasses.replace(longest, max_tokens=5)
        results = generate(engine, [longest, too_long, longest])
        assert [each.last.finish_reason for each in results] == ["length", "error", "length"]
    finally:
        engine.close()


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(engine: Executor) -> None:
    """At temperature 1, where one number a draw gave other texts for half of the requests."""
    prompts = random_prompts(40000, 12, seed=11)
    asked = [
        EngineRequest(
            prompt,
            24,
            task_id=engine.task_ids[0] if seed % 2 else None,
            sampling=EngineSampling(top_k=0, seed=seed),
        )
        for seed, prompt in enumerate(prompts)
    ]
    alone = [generate(engine, [request])[0].token_ids for request in asked]
    together = [result.token_ids for result in generate(engine, asked)]
    assert alone == together


def test_an_end_token_given_as_a_stop_word_ends_a_guided_text(engine: Executor) -> None:
    request = dataclasses.replace(
        PLAIN,
        max_tokens=30,
        stop_words=((END,),),
        guide_type="regex",
        guide="[a-z]{2,6}",
        sampling=EngineSampling(min_tokens=2),
    )
    result = generate(engine, [request])[0]
    assert result.last.finish_reason == "stop"
    assert END not in result.token_ids[:2]
    assert END not in result.token_ids[:-1]
    text = engine.decode(token for token in result.token_ids if token != END)
    assert 2 <= len(text) <= 6


def test_guides_work_without_an_end_token_in_the_configuration(
    engine_dir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(engine_dir, copy)
    engine = Executor(copy, OPTIONS)
    try:
        config = json.loads((copy / "config.json").read_text())
        del config["eos_token_id"]
        (copy / "config.json").write_text(json.dumps(config))
        request = dataclasses.replace(PLAIN, end_id=7, guide_type="regex", guide="[0-9]{3}")
        result = generate(engine, [request])[0]
        assert result.last.finish_reason == "stop"
        assert engine.decode(result.token_ids).isdigit()
    finally:
        engine.close()


def test_a_slow_mask_holds_up_no_other_request(
    engine: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, prepare = threading.Event(), Guide.prepare

    def slow(guide: Guide) -> None:
        assert may_go_on.wait(60)
        prepare(guide)

    guided = dataclasses.replace(PLAIN, guide_type="regex", guide="[0-9]{6}", wants_log_probs=True)
    quick = generate(engine, [guided])[0]
    monkeypatch.setattr(Guide, "prepare", slow)
    held = Run(engine, [guided])
    others = generate(engine, [PLAIN, PLAIN])
    assert [each.last.finish_reason for each in others] == ["length", "length"]
    assert not held.results[0].events
    may_go_on.set()
    found = held.wait()[0]
    assert found.token_ids == quick.token_ids
    assert found.last.log_probs == pytest.approx(quick.last.log_probs, abs=1e-4)


def test_a_request_whose_mask_is_late_can_be_cancelled(
    engine: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()
    guided = dataclasses.replace(PLAIN, guide_type="regex", guide="[0-9]{6}")
    generate(engine, [guided])
    monkeypatch.setattr(Guide, "prepare", lambda guide: may_go_on.wait(60))
    held = Run(engine, [guided])
    while engine.stats().num_active == 0:
        time.sleep(0.001)
    engine.cancel(held.handles[0])
    assert held.wait()[0].last.finish_reason == "cancelled"
    may_go_on.set()
    assert engine.stats().kv_blocks_used == 0
