"""The embedded engine's tokens against transformers + PEFT, in any batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from engines import generate, random_prompts, reference
from executor_parts import NUM_TOKENS, OPTIONS, ask

from compllm.embedded.executor import Executor

# Two candidates closer than this may swap places between summation orders; every other
# difference is an error.
TIE = 1e-3


@pytest.fixture(scope="module", params=["op", "mask"])
def engine(request: pytest.FixtureRequest, engine_dir: Path) -> Iterator[Executor]:
    engine = Executor(engine_dir, dataclasses.replace(OPTIONS, adapter_form=request.param))
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
