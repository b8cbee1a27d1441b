"""distribution.py against transformers' warpers and against full sorts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from compllm.embedded.distribution import Logits, Row, draw, keep, noise_key, top_ids

VOCAB = 4096


def logits_of(seed: int, vocab: int = VOCAB) -> Logits:
    return (np.random.default_rng(seed).standard_normal(vocab) * 4).astype(np.float32)


def shares_of(
    row: Logits, temperature: float, top_k: int, top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that can be drawn, and their probabilities."""
    ids, cumulated = keep(Row(row, row.max(), temperature), top_k, top_p)
    return ids, np.diff(cumulated, prepend=0.0) / cumulated[-1]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 5, 1.0),
        (0.7, 0, 0.8),
        (1.5, 40, 0.9),
        (3.0, 0, 0.5),
        (2.0, 3000, 0.95),
        (1.0, 2, 0.01),
    ],
)
def test_the_kept_tokens_equal_transformers(temperature: float, top_k: int, top_p: float) -> None:
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    row = logits_of(3)
    scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(row[None].copy()))
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    probabilities = torch.softmax(scores.double(), -1)[0].numpy()
    ids, shares = shares_of(row, temperature, top_k, top_p)
    ours = np.zeros(row.size)
    ours[ids] = shares
    np.testing.assert_array_equal(ours > 0, probabilities > 0)
    np.testing.assert_allclose(ours, probabilities, rtol=2e-5)


def test_top_p_ties_keep_the_lower_ids() -> None:
    ids, shares = shares_of(np.zeros(VOCAB, np.float32), 1.0, 0, 0.25)
    assert ids.tolist() == list(range(VOCAB // 4))
    np.testing.assert_allclose(shares, 4 / VOCAB)


@given(st.integers(0, 10_000), st.floats(0.01, 0.999), st.sampled_from([1, 5, 1500, 9000]))
def test_the_nucleus_equals_a_full_sort(seed: int, top_p: float, vocab: int) -> None:
    # Few different values: ties everywhere.
    weights = 2.0 ** np.random.default_rng(seed).integers(-6, 1, vocab)
    row = np.log(weights).astype(np.float32)
    exact = np.exp(row - row.max(), dtype=np.float32)
    order = np.lexsort((np.arange(vocab), -exact))
    cumulated = np.cumsum(exact[order], dtype=np.float64)
    expected = order[: int(cumulated.searchsorted(top_p * exact.sum(dtype=np.float64))) + 1]
    ids, _ = shares_of(row, 1.0, 0, top_p)
    assert abs(len(ids) - len(expected)) <= 1  # the sums run in another order and round otherwise
    assert set(ids) <= set(order[: len(expected) + 1])


@given(st.integers(1, 3000), st.integers(0, 5), st.sampled_from([1, 7, 64, 1000, 2048]))
def test_top_ids_equal_a_full_sort(k: int, seed: int, vocab: int) -> None:
    # Rounded to bring ties.
    row = np.round(logits_of(seed, vocab) * 2).astype(np.float32)
    row[::3] = -np.inf if seed % 2 else row[::3]
    expected = [i for i in np.lexsort((np.arange(vocab), -row)) if row[i] > -np.inf]
    assert top_ids(row, k).tolist() == expected[:k]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.8), (6, 1.0), (6, 0.8)])
def test_drawn_shares_are_the_probabilities(top_k: int, top_p: float) -> None:
    row = np.linspace(2, -2, 12, dtype=np.float32)
    ids, shares = shares_of(row, 1.3, top_k, top_p)
    num_draws = 6000
    keys = [noise_key(5, position) for position in range(num_draws)]
    drawn = [draw(Row(row, row.max(), 1.3), top_k, top_p, key) for key in keys]
    found = np.bincount(drawn, minlength=row.size)
    assert found.sum() == found[ids].sum()
    expected = shares * num_draws
    chi2 = float(((found[ids] - expected) ** 2 / expected).sum())
    assert chi2 < 40  # 11 degrees of freedom at most: more happens once in 30,000


def test_draws_of_one_seed_do_not_depend_on_each_other() -> None:
    row = np.zeros(2, np.float32)
    for first, second in (((3, 0), (3, 1)), ((3, 0), (4, 0)), ((0, 1), (1, 0))):
        pairs = np.zeros((2, 2), int)
        for number in range(2000):
            one, two = (
                draw(Row(row, row.max(), 1.0), 0, 1.0, noise_key(seed + number * 7, place))
                for seed, place in (first, second)
            )
            pairs[one, two] += 1
        assert 430 < pairs.min() <= pairs.max() < 570  # 500 each, give or take 3.6 deviations


def test_rounding_of_the_logits_moves_hardly_any_draw() -> None:
    """One number for the whole row moved 14 of 24 whole texts: it shifted every later token."""
    rng = np.random.default_rng(1)
    num_moved = 0
    for position in range(500):
        row = logits_of(position)
        other = row + (rng.standard_normal(row.size) * 1e-4).astype(np.float32)
        key = noise_key(9, position)
        first, second = (draw(Row(each, each.max(), 1.0), 0, 1.0, key) for each in (row, other))
        num_moved += first != second
    assert num_moved <= 1


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.9), (7, 1.0), (7, 0.9)])
def test_a_forbidden_token_is_never_drawn(top_k: int, top_p: float) -> None:
    row = np.full(VOCAB, -np.inf, np.float32)
    row[[3, 9]] = [0.5, 1.0]
    keys = [noise_key(0, position) for position in range(50)]
    drawn = {draw(Row(row, row.max(), 1.0), top_k, top_p, key) for key in keys}
    assert drawn == {3, 9}
