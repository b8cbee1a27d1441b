"""sampling.py against transformers' logits processors, and its own promises."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from compllm.embedded.request import EngineSampling
from compllm.embedded.sampling import (
    NO_TOKEN,
    Logits,
    SamplerState,
    sample_batch,
)
from compllm.errors import RequestInvalid

VOCAB = 4096


def logits_of(num_rows: int, seed: int = 0, vocab: int = VOCAB) -> Logits:
    return (np.random.default_rng(seed).standard_normal((num_rows, vocab)) * 4).astype(np.float32)


def greedy(row: Logits, state: SamplerState) -> int:
    return int(sample_batch(row[None].copy(), [state])[0])


def drawn_set(row: Logits, sampling: EngineSampling, num_draws: int = 400) -> set[int]:
    state = SamplerState(sampling)
    return {int(sample_batch(row[None].copy(), [state])[0]) for _ in range(num_draws)}


def test_plain_greedy_is_the_argmax_with_the_lower_id_on_ties() -> None:
    logits = np.zeros((2, 8), np.float32)
    logits[1, [3, 5]] = 2
    states = [SamplerState(EngineSampling()), SamplerState(EngineSampling(temperature=0, top_k=0))]
    assert all(state.is_plain for state in states)
    tokens = sample_batch(logits, states)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [0, 3]


@pytest.mark.parametrize(
    "sampling",
    [
        EngineSampling(),
        EngineSampling(repetition_penalty=3.0, frequency_penalty=2.0),
        EngineSampling(temperature=0.3, top_k=5, top_p=0.5, seed=4),
    ],
)
def test_log_probs_are_of_the_rows_as_they_come(sampling: EngineSampling) -> None:
    logits = logits_of(2)
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1))[:, None]
    prompt_ids = [int(token) for token in logits.argmax(axis=1)]
    states = [
        SamplerState(sampling, prompt_ids, guide=guide, is_scored=True)
        for guide in (None, EvenGuide())
    ]
    tokens = sample_batch(logits, states)
    for row, (token, state) in enumerate(zip(tokens, states, strict=True)):
        assert state.log_prob == pytest.approx(expected[row, token], abs=1e-5)


def test_no_token_is_more_than_certain() -> None:
    """The sum of rounded numbers may be less than the largest of them."""
    for highest in np.linspace(1, 30, 1000, dtype=np.float32):
        state = SamplerState(EngineSampling(), is_scored=True)
        sample_batch(np.array([[highest, -80]], np.float32), [state])
        assert -1e-6 < state.log_prob <= 0


@pytest.mark.parametrize("shift", [200, 0, -60, -200])
def test_log_probs_do_not_depend_on_where_the_logits_lie(shift: float) -> None:
    state = SamplerState(EngineSampling(), is_scored=True)
    sample_batch(np.array([[2, 1, -np.inf]], np.float32) + np.float32(shift), [state])
    assert state.log_prob == pytest.approx(-math.log(1 + math.exp(-1)), abs=1e-6)


def test_repetition_penalty_equals_transformers() -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    row = logits_of(1)[0]
    prompt, output = [5, 5, 17, 400], [17, 9, 9]
    state = SamplerState(EngineSampling(repetition_penalty=1.7), prompt)
    for token in output:
        state.accept(token)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(
        torch.tensor([prompt + output]), torch.from_numpy(row[None].copy())
    )
    state.apply(row)
    np.testing.assert_array_equal(row, expected[0].numpy())


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    sampling = EngineSampling(presence_penalty=0.5, frequency_penalty=0.25)
    state = SamplerState(sampling, prompt_ids=[1])
    for token in [2, 2, 3]:
        state.accept(token)
    row = np.zeros(5, np.float32)
    state.apply(row)
    assert row.tolist() == [0, 0, -1.0, -0.75, 0]


def test_penalties_grow_with_a_long_output() -> None:
    state = SamplerState(EngineSampling(frequency_penalty=1))
    for token in range(500):
        state.accept(token)
    row = np.zeros(600, np.float32)
    state.apply(row)
    assert row.sum() == -500


def test_drawn_frequencies_follow_the_distribution() -> None:
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    state = SamplerState(EngineSampling(top_k=0, seed=11))
    draws = [int(sample_batch(row[None].copy(), [state])[0]) for _ in range(4000)]
    shares = np.bincount(draws, minlength=4) / len(draws)
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.15, 0.05], atol=0.03)


def test_top_k_ties_keep_the_lower_ids() -> None:
    row = np.zeros(VOCAB, np.float32)
    assert drawn_set(row, EngineSampling(top_k=3)) == {0, 1, 2}


@pytest.mark.parametrize("top_p", [0.0, 1e-6])
@pytest.mark.parametrize("top_k", [0, 3])
def test_top_p_of_nearly_nothing_keeps_the_best_token_alone(top_p: float, top_k: int) -> None:
    row = np.array([0.0, 0.2, 0.1, 0.2], np.float32)
    assert drawn_set(row, EngineSampling(top_k=top_k, top_p=top_p)) == {1}
    many = np.zeros(40_000, np.float32)
    assert drawn_set(many, EngineSampling(top_k=0, top_p=top_p)) == {0}


def test_the_same_seed_gives_the_same_tokens_in_any_batch() -> None:
    steps = [logits_of(4, seed=s) for s in range(20)]

    def tokens_of(rows: list[int]) -> list[int]:
        states = [SamplerState(EngineSampling(top_k=50, top_p=0.95, seed=7 + r)) for r in rows]
        return [int(sample_batch(step[rows].copy(), states)[rows.index(2)]) for step in steps]

    assert tokens_of([2]) == tokens_of([0, 1, 2, 3]) == tokens_of([3, 2])


def test_other_seeds_give_other_tokens() -> None:
    row = logits_of(1)[0] / 8
    texts = {
        tuple(greedy(row, state) for _ in range(8))
        for state in (SamplerState(EngineSampling(top_k=0, seed=seed)) for seed in range(5))
    }
    assert len(texts) == 5


def test_without_a_seed_each_request_draws_anew() -> None:
    """Every "random" answer was the one of seed 0."""
    row = logits_of(1)[0] / 8
    states = [SamplerState(EngineSampling(top_k=0)) for _ in range(5)]
    assert len({tuple(greedy(row, state) for _ in range(8)) for state in states}) == 5


def test_a_mixed_batch_serves_each_row_by_its_own_rules() -> None:
    logits = np.zeros((4, 6), np.float32)
    logits[:, 4] = 3
    states = [
        SamplerState(EngineSampling()),
        SamplerState(EngineSampling(top_k=2, top_p=1e-3, seed=1)),
        SamplerState(EngineSampling(min_tokens=1), end_ids=[4]),
        SamplerState(EngineSampling(), bad_words=[[4]]),
    ]
    assert sample_batch(logits, states).tolist() == [4, 4, 0, 0]


def test_end_is_forbidden_until_min_tokens_and_then_the_row_is_plain() -> None:
    row = np.array([0, 1, 2], np.float32)
    state = SamplerState(EngineSampling(min_tokens=2), end_ids=[2, -1])
    assert [greedy(row, state) for _ in range(3)] == [1, 1, 2]
    assert state.is_plain


def test_bad_words_equal_transformers() -> None:
    import torch
    from transformers.generation.logits_process import NoBadWordsLogitsProcessor

    words = [[3], [1, 2], [7, 1, 4], [9, 9]]
    prompt, output = [6, 7], [1]
    state = SamplerState(EngineSampling(), prompt, bad_words=words)
    for token in output:
        state.accept(token)
    row = logits_of(1, vocab=12)[0]
    expected = NoBadWordsLogitsProcessor(words, eos_token_id=[11])(
        torch.tensor([prompt + output]), torch.from_numpy(row[None].copy())
    )
    state.apply(row)
    np.testing.assert_array_equal(row, expected[0].numpy())


def test_ids_outside_the_vocabulary_forbid_nothing() -> None:
    row = np.array([0, 1, 2], np.float32)
    state = SamplerState(EngineSampling(min_tokens=9), end_ids=[99], bad_words=[[99], [-1]])
    assert greedy(row, state) == 2


class EvenGuide:
    """Even ids only, three of them."""

    error: str | None = None
    is_own = True

    def prepare(self) -> None:
        pass

    def __init__(self) -> None:
        self.seen: list[int] = []

    @property
    def is_terminated(self) -> bool:
        return len(self.seen) == 3

    def mask(self, row: Logits) -> None:
        row[1::2] = -np.inf

    def accept(self, token: int) -> None:
        self.seen.append(token)


@pytest.mark.parametrize("sampling", [EngineSampling(), EngineSampling(top_k=20, temperature=2)])
def test_a_guide_masks_learns_tokens_and_ends_the_request(sampling: EngineSampling) -> None:
    guide = EvenGuide()
    state = SamplerState(sampling, guide=guide)
    row = logits_of(1)[0]
    tokens = []
    while not state.is_finished:
        tokens.append(greedy(row, state))
    assert guide.seen == tokens
    assert len(tokens) == 3
    assert all(token % 2 == 0 for token in tokens)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("top_k", [0, 1, 5])
def test_a_row_without_a_possible_token_gives_none_and_spares_the_others(
    value: float, top_k: int
) -> None:
    logits = logits_of(2)
    logits[0] = value
    states = [SamplerState(EngineSampling(top_k=top_k)) for _ in range(2)]
    tokens = sample_batch(logits, states)
    assert tokens[0] == NO_TOKEN
    assert tokens[1] >= 0
    assert "no token is possible" in states[0].error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.5),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 1.5),
        ("temperature", 1e38),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-40),  # made logits infinite, which ended the engine for everybody
        ("repetition_penalty", 3e38),
        ("repetition_penalty", 1e300),
        ("presence_penalty", float("inf")),
        ("presence_penalty", -3e38),
        ("frequency_penalty", -3e38),
        ("frequency_penalty", 1e39),
        ("seed", -1),
        ("min_tokens", -2),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(RequestInvalid, match=re.escape(f"{name} is {value}")):
        SamplerState(EngineSampling(**{name: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
@pytest.mark.parametrize("top_p", [0.0, 0.9])
def test_the_largest_penalties_leave_every_logit_finite(name: str, top_p: float) -> None:
    for value in (0.001, 1000.0, -1000.0):
        if name == "repetition_penalty" and value < 0:
            continue
        sampling = EngineSampling(top_k=0, top_p=top_p, **{name: value})  # type: ignore[arg-type]
        state = SamplerState(sampling, range(0, VOCAB, 2))
        row = logits_of(1)[0] * 1000
        for _ in range(3000):
            state.accept(7)
        assert sample_batch(row[None], [state])[0] != NO_TOKEN
        assert np.isfinite(row).all()


@pytest.mark.parametrize("temperature", [1e-40, 1e-9])
def test_a_temperature_next_to_nothing_is_greedy(temperature: float) -> None:
    row = np.array([0, 2, 1], np.float32)
    assert SamplerState(EngineSampling(temperature=temperature, top_k=0)).is_greedy
    assert drawn_set(row, EngineSampling(temperature=temperature, top_k=0)) == {1}


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.9), (5, 1.0)])
def test_infinite_logits_end_the_request_that_has_them_alone(top_k: int, top_p: float) -> None:
    logits = logits_of(2)
    logits[0, 5] = np.inf
    states = [SamplerState(EngineSampling(top_k=top_k, top_p=top_p)) for _ in range(2)]
    tokens = sample_batch(logits, states)
    assert tokens[0] == NO_TOKEN
    assert tokens[1] >= 0
    assert "largest logit is inf" in states[0].error


class BrokenGuide(EvenGuide):
    """Fails where the test says."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def mask(self, row: Logits) -> None:
        if self.method == "mask":
            raise RuntimeError("out of order")

    def accept(self, token: int) -> None:
        raise RuntimeError("out of order")


@pytest.mark.parametrize("method", ["mask", "accept"])
def test_an_exception_in_one_row_ends_that_request_alone(method: str) -> None:
    states = [
        SamplerState(EngineSampling(), guide=BrokenGuide(method)),
        SamplerState(EngineSampling()),
        SamplerState(EngineSampling(top_k=0), guide=EvenGuide()),
    ]
    tokens = sample_batch(logits_of(3), states)
    assert tokens[0] == NO_TOKEN
    assert min(tokens[1:]) >= 0
    assert "out of order" in states[0].error
