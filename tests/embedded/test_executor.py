"""The embedded engine against transformers + PEFT, and its behaviour under cancels, limits and
live adapters.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from engines import Run, generate, make_engine, random_prompts, reference
from helpers import MakeAdapter

from compllm.embedded.executor import Executor
from compllm.embedded.options import ExecutorOptions
from compllm.embedded.request import EngineRequest, EngineSampling
from compllm.errors import INVALID, NOT_FOUND, AdapterUnknown, ArtefactError
from compllm.formats.adapters import read_peft
from compllm.formats.checkpoint import validate_checkpoint

NUM_TOKENS = 12
# Two candidates closer than this may swap places between summation orders; every other
# difference is an error.
TIE = 1e-3
ADAPTERS = {
    "narrow": {"rank": 2, "modules": ("q_proj", "v_proj"), "seed": 1},
    "wide": {"rank": 16, "modules": ("gate_proj", "up_proj", "down_proj", "o_proj"), "seed": 2},
    "odd": {"rank": 5, "modules": ("k_proj", "down_proj", "up_proj"), "seed": 3},
}
OPTIONS = ExecutorOptions(
    kv_cache_tokens=4096, max_num_tokens=48, max_adapters=4, stream_interval_ms=0
)


@pytest.fixture(scope="module")
def adapters(tiny_checkpoint: Path, make_adapter: MakeAdapter) -> dict[str, Path]:
    return {
        name: make_adapter(tiny_checkpoint, name, scale=0.5, **kwargs)
        for name, kwargs in ADAPTERS.items()
    }


@pytest.fixture(scope="module")
def engine_dir(
    tiny_checkpoint: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return make_engine(tiny_checkpoint, tmp_path_factory.mktemp("engine") / "e", "fp16", adapters)


@pytest.fixture(scope="module", params=["op", "mask"])
def engine(request: pytest.FixtureRequest, engine_dir: Path) -> Iterator[Executor]:
    engine = Executor(engine_dir, dataclasses.replace(OPTIONS, adapter_form=request.param))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def op_engine(engine_dir: Path) -> Iterator[Executor]:
    engine = Executor(engine_dir, OPTIONS)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path, adapters: dict[str, Path]) -> SimpleNamespace:
    """The same prompts for the base and each adapter, and what transformers + PEFT makes."""
    prompts = random_prompts(40000, 5, seed=0)
    answers = {
        name: reference(tiny_checkpoint, path, prompts, NUM_TOKENS)
        for name, path in {"": None, **adapters}.items()
    }
    assert len({tuple(a[0].token_ids) for a in answers.values()}) == 4, (
        "the adapters change nothing"
    )
    return SimpleNamespace(prompts=prompts, answers=answers)


def ask(
    engine: Executor, prompt: tuple[int, ...], adapter: str = "", num_tokens: int = NUM_TOKENS
) -> EngineRequest:
    return EngineRequest(
        prompt, num_tokens, task_id=engine.adapter_names[adapter] if adapter else None
    )


def test_greedy_tokens_are_those_of_transformers_and_peft_in_one_mixed_batch(
    engine: Executor, expected: SimpleNamespace
) -> None:
    cases = [(n, i) for i in range(len(expected.prompts)) for n in expected.answers]
    results = generate(engine, [ask(engine, expected.prompts[i], n) for n, i in cases])
    num_ties = 0
    for (name, i), result in zip(cases, results, strict=True):
        answer = expected.answers[name][i]
        place = answer.parting(result.token_ids)
        if place is not None:
            assert answer.margins[place] < TIE, (name, i, place)
            num_ties += 1
    assert num_ties <= len(cases) // 10
    assert engine.stats().max_adapters_in_step == 4


@pytest.mark.parametrize("is_streamed", [False, True])
def test_log_probs_are_those_of_transformers_where_a_request_wants_them(
    engine: Executor, expected: SimpleNamespace, is_streamed: bool
) -> None:
    cases = [(n, i, wants) for i in (0, 1) for n in expected.answers for wants in (True, False)]
    asked = [
        dataclasses.replace(
            ask(engine, expected.prompts[i], n), wants_log_probs=wants, is_streamed=is_streamed
        )
        for n, i, wants in cases
    ]
    results = generate(engine, asked)
    assert any(len(result.events) > 1 for result in results) == is_streamed
    for (name, i, wants), result in zip(cases, results, strict=True):
        answer = expected.answers[name][i]
        place = answer.parting(result.token_ids)  # after a tie all is different
        found = result.last.log_probs
        assert len(found) == (NUM_TOKENS if wants else 0)
        if wants:
            error = 5e-3 if name and engine.runner.form == "op" else 1e-4  # it keeps them as halves
            assert found[:place] == pytest.approx(answer.log_probs[:place], abs=error)


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


def test_a_request_gets_the_same_tokens_alone_and_in_any_mix(
    engine: Executor, expected: SimpleNamespace
) -> None:
    cases = [(n, i) for i in range(len(expected.prompts)) for n in expected.answers]
    mixed = generate(engine, [ask(engine, expected.prompts[i], n) for n, i in cases])
    for (name, i), result in zip(cases[::3], mixed[::3], strict=True):
        alone = generate(engine, [ask(engine, expected.prompts[i], name)])[0]
        answer = expected.answers[name][i]
        for place, (a, b) in enumerate(zip(alone.token_ids, result.token_ids, strict=True)):
            if a != b:
                assert answer.margins[place] < TIE, (name, i, place)
                break


def test_chunked_prefill_does_not_change_the_tokens(
    engine_dir: Path, expected: SimpleNamespace
) -> None:
    options = dataclasses.replace(OPTIONS, max_num_tokens=7, is_prefix_reused=False)
    engine = Executor(engine_dir, options)
    try:
        results = generate(engine, [ask(engine, p, "wide") for p in expected.prompts])
    finally:
        engine.close()
    for result, answer in zip(results, expected.answers["wide"], strict=True):
        place = answer.parting(result.token_ids)
        assert place is None or answer.margins[place] < TIE


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
