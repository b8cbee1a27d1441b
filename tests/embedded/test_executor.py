"""The embedded engine: streams, ends, cancels, limits, live adapters."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import Run, generate, random_prompts
from executor_parts import NUM_TOKENS, OPTIONS, ask

from compllm.embedded.executor import Executor
from compllm.embedded.request import EngineRequest, EngineSampling
from compllm.errors import INVALID, NOT_FOUND, AdapterUnknown, ArtefactError
from compllm.formats.adapters import read_peft
from compllm.formats.checkpoint import validate_checkpoint


def test_streamed_log_probs_are_those_of_all_tokens_up_to_there(op_engine: Executor) -> None:
    request = dataclasses.replace(ask(op_engine, (5, 6, 7)), wants_log_probs=True)
    whole = generate(op_engine, [request])[0].last.log_probs
    streamed = generate(op_engine, [dataclasses.replace(request, is_streamed=True)])[0]
    for num_tokens, event in enumerate(streamed.events, 1):
        assert event.log_probs == pytest.approx(whole[:num_tokens], abs=1e-5)


def test_the_end_token_has_no_log_prob(op_engine: Executor) -> None:
    request = ask(op_engine, (5, 6, 7))
    tokens = generate(op_engine, [request])[0].token_ids
    place = next(n for n, token in enumerate(tokens) if n and token not in tokens[:n])
    ended = dataclasses.replace(request, end_id=tokens[place], wants_log_probs=True)
    assert len(generate(op_engine, [ended])[0].last.log_probs) == place


def test_a_prefix_is_reused_by_the_same_adapter_only(op_engine: Executor) -> None:
    prompt = tuple(range(100, 200))
    first = generate(op_engine, [ask(op_engine, prompt, "wide")])[0]
    again = generate(op_engine, [ask(op_engine, prompt, "wide")])[0]
    other = generate(op_engine, [ask(op_engine, prompt, "odd")])[0]
    assert again.last.perf is not None
    assert again.last.perf.kv_reused_blocks == 3
    assert other.last.perf is not None
    assert other.last.perf.kv_reused_blocks == 0
    assert again.token_ids == first.token_ids != other.token_ids


def test_streamed_events_add_up_to_the_whole(op_engine: Executor) -> None:
    request = ask(op_engine, (5, 6, 7), "narrow")
    whole = generate(op_engine, [request])[0]
    streamed = generate(op_engine, [dataclasses.replace(request, is_streamed=True)])[0]
    assert streamed.token_ids == whole.token_ids
    assert len(streamed.events) == NUM_TOKENS
    assert len(whole.events) == 1


@pytest.fixture
def rare_engine(engine_dir: Path) -> Iterator[Executor]:
    """One that reports nothing because of the time alone."""
    engine = Executor(engine_dir, dataclasses.replace(OPTIONS, stream_interval_ms=1e9))
    yield engine
    engine.close()


def test_a_stream_tells_its_first_token_and_ends_of_lines_at_once(rare_engine: Executor) -> None:
    """A response a token cost a decoding step of 6 ms another 0.6."""
    plain = dataclasses.replace(ask(rare_engine, (5, 6, 7), "wide"), is_streamed=True)
    whole = generate(rare_engine, [dataclasses.replace(plain, is_streamed=False)])[0]
    streamed = generate(rare_engine, [plain])[0]
    assert streamed.token_ids == whole.token_ids
    assert [len(event.token_ids) for event in streamed.events] == [1, NUM_TOKENS - 1]
    plan = dataclasses.replace(
        plain, max_tokens=40, end_id=2, guide_type="regex", guide=r"[0-9]{5}\n[0-9]{5}\n[0-9]{5}"
    )
    events = generate(rare_engine, [plan])[0].events
    texts = [rare_engine.decode(event.token_ids) for event in events]
    assert len(texts[0]) + len(texts[1]) == 6
    assert [text[-1:] == "\n" for text in texts] == [False, True, True, False]


def test_a_stream_tells_all_before_a_step_with_prefill(rare_engine: Executor) -> None:
    request = dataclasses.replace(ask(rare_engine, (5, 6, 7), "wide", 400), is_streamed=True)
    stream = Run(rare_engine, [request])
    stream.first_events[0].wait(60)
    while rare_engine.stats().num_steps < 4:  # until it has news
        time.sleep(0.001)
    generate(rare_engine, [ask(rare_engine, tuple(range(300, 340)), "odd", 1)])
    assert len(stream.results[0].events) == 2
    stream.wait()


def test_the_end_token_ends_and_is_not_part_of_the_output(op_engine: Executor) -> None:
    request = ask(op_engine, (5, 6, 7))
    tokens = generate(op_engine, [request])[0].token_ids
    place = next(i for i in range(1, NUM_TOKENS) if tokens[i] not in tokens[:i])
    ended = generate(op_engine, [dataclasses.replace(request, end_id=tokens[place])])[0]
    assert ended.token_ids == tokens[:place]
    assert ended.last.finish_reason == "stop"


def test_a_stop_word_ends_and_is_part_of_the_output(op_engine: Executor) -> None:
    request = ask(op_engine, (5, 6, 7))
    tokens = generate(op_engine, [request])[0].token_ids
    words = (tuple(tokens[2:4]),)
    ended = generate(op_engine, [dataclasses.replace(request, stop_words=words)])[0]
    assert ended.token_ids == tokens[:4]


def test_a_seed_gives_the_same_tokens_in_any_batch(op_engine: Executor) -> None:
    sampling = EngineSampling(temperature=1.0, top_k=50, top_p=0.95, seed=7)
    request = dataclasses.replace(ask(op_engine, (9, 8, 7, 6), "odd"), sampling=sampling)
    others = [ask(op_engine, p) for p in random_prompts(40000, 3, seed=5)]
    alone = generate(op_engine, [request])[0]
    mixed = generate(op_engine, [*others, request])[-1]
    assert alone.token_ids == mixed.token_ids


def test_a_guide_holds_the_output_to_its_grammar(op_engine: Executor) -> None:
    request = dataclasses.replace(
        ask(op_engine, (5, 6, 7), "wide", 40),
        guide_type="regex",
        guide=r"[0-9]{3}-[a-f]{4}",
        end_id=2,
    )
    result = generate(op_engine, [request])[0]
    text = op_engine.decode(result.token_ids)
    assert len(text) == 8
    assert text[:3].isdigit()
    assert text[3] == "-"
    assert result.last.finish_reason == "stop"


def test_cancelling_ends_within_one_step_and_frees_the_blocks(op_engine: Executor) -> None:
    request = dataclasses.replace(ask(op_engine, (5, 6, 7), "wide", 400), is_streamed=True)
    run = Run(op_engine, [request] * 3)
    run.first_events[1].wait(60)
    steps = op_engine.stats().num_steps
    op_engine.cancel(run.handles[1])
    op_engine.cancel(run.handles[1])
    while not run.results[1].last.is_final:
        run.first_events[1].clear()
        run.first_events[1].wait(60)
    assert run.results[1].last.finish_reason == "cancelled"
    assert op_engine.stats().num_steps <= steps + 2
    for handle in run.handles:
        op_engine.cancel(handle)
    run.wait()
    assert op_engine.stats().num_active == 0
    assert op_engine.stats().kv_blocks_used == 0


def test_more_requests_than_the_cache_holds_wait_and_all_end(engine_dir: Path) -> None:
    engine = Executor(engine_dir, dataclasses.replace(OPTIONS, kv_cache_tokens=256))
    try:
        prompts = random_prompts(40000, 12, seed=9, low=40, high=90)
        results = generate(engine, [ask(engine, p, "odd", 30) for p in prompts])
        assert [r.last.finish_reason for r in results] == ["length"] * 12
        assert engine.stats().kv_blocks_used == 0
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": ()}, "input_ids is empty"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 5000}, "exceeds the engine's max_seq_len"),
        ({"input_ids": (10**6,)}, "outside the vocabulary"),
        ({"task_id": 12345}, "LoRA task 12345 not found in cache. Please send LoRA weights"),
        ({"guide": "x"}, "without guided_decoding_guide_type"),
        ({"sampling": EngineSampling(top_p=2.0)}, "top_p is 2.0"),
    ],
)
def test_a_request_that_cannot_run_is_refused_with_the_reason(
    op_engine: Executor, change: dict[str, object], message: str
) -> None:
    request = dataclasses.replace(ask(op_engine, (1, 2, 3)), **change)  # type: ignore[arg-type]
    event = generate(op_engine, [request])[0].last
    assert event.situation is (NOT_FOUND if "task_id" in change else INVALID)
    assert message in (event.error or "")


def test_adapters_are_loaded_swapped_and_removed_while_requests_run(
    op_engine: Executor, adapters: dict[str, Path], tiny_checkpoint: Path
) -> None:
    shape = validate_checkpoint(tiny_checkpoint)
    first, second = (read_peft(adapters[n], shape, n) for n in ("wide", "odd"))
    prompt = tuple(range(300, 340))
    tokens = {
        n: generate(op_engine, [ask(op_engine, prompt, n)])[0].token_ids for n in ("wide", "odd")
    }
    running = Run(op_engine, [ask(op_engine, prompt, "narrow", 200)])
    live = EngineRequest(prompt, NUM_TOKENS, task_id=77)
    op_engine.load_adapter(77, first)
    assert generate(op_engine, [live])[0].token_ids == tokens["wide"]
    op_engine.load_adapter(77, second)
    assert generate(op_engine, [live])[0].token_ids == tokens["odd"]
    op_engine.remove_adapter(77)
    assert "not found in cache" in (generate(op_engine, [live])[0].last.error or "")
    with pytest.raises(AdapterUnknown, match="adapter 77 is not loaded"):
        op_engine.remove_adapter(77)
    running.wait()


def test_a_replaced_adapter_serves_its_running_request_to_the_end(
    op_engine: Executor, adapters: dict[str, Path], tiny_checkpoint: Path
) -> None:
    shape = validate_checkpoint(tiny_checkpoint)
    prompt = tuple(range(400, 420))
    op_engine.load_adapter(78, read_peft(adapters["wide"], shape))
    request = EngineRequest(prompt, 120, task_id=78)
    alone = generate(op_engine, [request])[0].token_ids
    running = Run(op_engine, [dataclasses.replace(request, is_streamed=True)])
    running.first_events[0].wait(60)
    op_engine.remove_adapter(78)
    assert running.wait()[0].token_ids == alone


def test_every_step_is_timed_and_idle_time_is_not(engine_dir: Path) -> None:
    engine = Executor(engine_dir, OPTIONS)
    try:
        started = time.monotonic()
        for first in (100, 200):
            time.sleep(0.2)  # the engine waits
            generate(engine, [ask(engine, tuple(range(first, first + 60)), "wide")])
        wall_s = time.monotonic() - started
        stats = engine.stats()
    finally:
        engine.close()
    by_kind = {(each.num_decodes, each.has_prefill): each for each in stats.step_times}
    assert sum(each.num_steps for each in by_kind.values()) == stats.num_steps
    # 60 tokens in chunks of 48 and 12, the second of which gives the first token.
    assert (by_kind[0, True].num_steps, by_kind[0, True].num_prefilled) == (4, 120)
    assert by_kind[1, False].num_steps == 2 * (NUM_TOKENS - 1)
    assert 0 < sum(each.seconds for each in by_kind.values()) < wall_s - 0.4


def test_an_engine_has_a_slot_for_each_of_its_adapters(
    engine_dir: Path, op_engine: Executor
) -> None:
    engine = Executor(engine_dir, dataclasses.replace(OPTIONS, max_adapters=1))
    try:
        assert sorted(engine.task_ids) == sorted(engine.adapter_names.values())
        for name in engine.adapter_names:
            ours, theirs = (ask(each, (5, 6, 7), name) for each in (engine, op_engine))
            assert (
                generate(engine, [ours])[0].token_ids == generate(op_engine, [theirs])[0].token_ids
            )
    finally:
        engine.close()


def test_a_closed_engine_cancels_what_runs_and_refuses_more(engine_dir: Path) -> None:
    engine = Executor(engine_dir, OPTIONS)
    run = Run(engine, [dataclasses.replace(ask(engine, (5, 6), "", 450), is_streamed=True)])
    run.first_events[0].wait(60)
    engine.close()
    assert run.wait()[0].last.finish_reason == "cancelled"
    assert "shut down" in (generate(engine, [EngineRequest((1,), 1)])[0].last.error or "")


def test_a_directory_that_is_no_engine_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"not an engine directory.*build_openvino"):
        Executor(tmp_path)
