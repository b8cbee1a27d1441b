"""Logits to tokens: the last stage of an engine step, and whether a new token stops a request.

`executor.py` keeps one `SamplerState` and one `StopMatcher` per request and calls `sample_batch`
once per step. Greedy requests without conditions, the common case, cost one batched argmax and
nothing per request.

Order within a row, as transformers applies its processors: repetition penalty (prompt and output),
presence and frequency penalty (output only, as OpenAI and vLLM count), min_tokens, bad words,
guide; then temperature, top-k, top-p, draw. A draw adds noise that follows from the seed, the
position and the token alone (`distribution.draw`), so that its neighbours in the batch, which move
logits by rounding, change no drawn token unless two were as good as equal.

A row that cannot be sampled ends its own request; no exception leaves `sample_batch`.

Log-probabilities are the model's own: of its logits as they come, before all of the above. So a
token that a guide forced upon the model has the low probability that the model gave it.
TensorRT-LLM (`normalize_log_probs` = false) takes the row after penalties, guide and temperature:
the same number for greedy requests without these.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compllm.embedded import distribution
from compllm.embedded.request import EngineSampling
from compllm.errors import RequestInvalid

Logits = NDArray[np.float32]

NO_TOKEN = -1  # in sample_batch's result: every token is forbidden, or the logits are not numbers

_NEG_INF = np.float32(-np.inf)

# Below it a temperature is greedy: float32 differences of logits divided by less may be infinite.
_MIN_TEMPERATURE = 1e-5

# With these, logits of any model that are finite stay so over any number of tokens.
_LIMITS: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0.0, 1000.0),
    ("top_k", 0, 2**31 - 1),
    ("top_p", 0.0, 1.0),
    ("repetition_penalty", float(np.float32(0.001)), 1000.0),
    ("presence_penalty", -1000.0, 1000.0),
    ("frequency_penalty", -1000.0, 1000.0),
    ("min_tokens", 0, 2**31 - 1),
    ("seed", 0, 2**64 - 1),
)


class TokenGuide(Protocol):
    """What a row needs from guided decoding; `guide.Guide` is the real one."""

    error: str | None

    @property
    def is_own(self) -> bool: ...  # its masks are known to be quick

    @property
    def is_terminated(self) -> bool: ...

    def prepare(self) -> None: ...  # what `mask` will need; by any one thread

    def mask(self, row: Logits) -> None: ...

    def accept(self, token: int) -> None: ...


class SamplerState:
    """What one request's next token depends on, besides its logits.

    end_ids: tokens that end the request, forbidden before `min_tokens`. bad_words: token sequences
    that must not appear in prompt + output. is_scored: `log_prob` is that of the last token drawn.
    Raises RequestInvalid for a setting out of range.
    """

    __slots__ = (
        "_bad_words",
        "_end_ids",
        "_is_always_plain",
        "_max_bad_word",
        "_penalties",
        "_recent",
        "_seed",
        "failure",
        "guide",
        "is_greedy",
        "is_plain",
        "is_scored",
        "log_prob",
        "num_generated",
        "sampling",
    )

    def __init__(
        self,
        sampling: EngineSampling,
        prompt_ids: Sequence[int] = (),
        *,
        end_ids: Sequence[int] = (),
        bad_words: Sequence[Sequence[int]] = (),
        guide: TokenGuide | None = None,
        is_scored: bool = False,
    ) -> None:
        check_sampling(sampling)
        self.sampling = sampling
        self.guide = guide
        self.is_scored = is_scored
        self.log_prob = 0.0
        self.num_generated = 0
        self.failure = ""  # what went wrong in this row, after NO_TOKEN
        self.is_greedy = sampling.top_k == 1 or sampling.temperature < _MIN_TEMPERATURE
        self._seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._end_ids = np.asarray([i for i in end_ids if i >= 0], np.int64)
        self._bad_words = tuple(tuple(word) for word in bad_words if len(word))
        self._max_bad_word = max(map(len, self._bad_words), default=0)
        self._recent = list(prompt_ids[-self._max_bad_word :]) if self._max_bad_word else []
        self._penalties = _Penalties(sampling, prompt_ids) if _has_penalties(sampling) else None
        self._is_always_plain = (
            self.is_greedy and not self._bad_words and self._penalties is None and guide is None
        )
        self.is_plain = False  # nothing to apply and nothing to remember: argmax is the answer
        self._settle()

    @property
    def is_finished(self) -> bool:
        """The guide is complete: nothing but the end can follow."""
        return self.guide is not None and self.guide.is_terminated

    @property
    def error(self) -> str:
        """Why there is no token, after NO_TOKEN."""
        if self.failure:
            return f"sampling failed: {self.failure}"
        if self.guide is not None and self.guide.error:
            return f"guided decoding failed: {self.guide.error}"
        return (
            "no token is possible: bad_words, min_tokens and the guide forbid all that are numbers"
        )

    def accept(self, token: int) -> None:
        """Take note of a generated token. `sample_batch` has done this for what it returned."""
        self.num_generated += 1
        if self._penalties is not None:
            self._penalties.count(token)
        if self._max_bad_word:
            self._recent.append(token)
            del self._recent[: -self._max_bad_word]
        if self.guide is not None:
            self.guide.accept(token)
        self._settle()

    def apply(self, row: Logits) -> None:
        """Penalise and forbid, in place."""
        if self._penalties is not None:
            self._penalties.apply(row)
        if self.num_generated < self.sampling.min_tokens and self._end_ids.size:
            row[self._end_ids[self._end_ids < row.size]] = _NEG_INF
        for word in self._bad_words:
            *prefix, last = word
            if (not prefix or self._recent[-len(prefix) :] == prefix) and 0 <= last < row.size:
                row[last] = _NEG_INF
        if self.guide is not None:
            self.guide.mask(row)

    def draw(self, row: Logits, highest: np.float32) -> int:
        """One token in proportion to its probability; `highest` is the row's maximum, a number."""
        sampling = self.sampling
        return distribution.draw(
            distribution.Row(row, highest, sampling.temperature),
            sampling.top_k,
            sampling.top_p,
            distribution.noise_key(self._seed, self.num_generated),
        )

    def _settle(self) -> None:
        self.is_plain = self._is_always_plain and (
            self.num_generated >= self.sampling.min_tokens or not self._end_ids.size
        )


def sample_batch(logits: Logits, states: Sequence[SamplerState]) -> NDArray[np.int32]:
    """The next token of each request, NO_TOKEN where there is none; the states take note of them.

    logits: float32 [len(states), vocab]; rows with conditions are overwritten. Greedy ties go to
    the lower id.
    """
    special = [i for i, state in enumerate(states) if not state.is_plain]
    scored = [i for i, state in enumerate(states) if state.is_scored]
    raw = {i: logits[i] if states[i].is_plain else logits[i].copy() for i in scored}
    for i in special:
        try:
            states[i].apply(logits[i])
        except Exception as error:  # of this request: the others go on
            states[i].failure = repr(error)
            logits[i] = _NEG_INF
    # One reduction over all rows beats a call per row, also when some rows are drawn afterwards.
    best = logits.argmax(axis=1)
    best_values = logits[np.arange(len(states)), best]
    tokens: NDArray[np.int32] = best.astype(np.int32)
    tokens[~(best_values > _NEG_INF)] = NO_TOKEN  # NaN compares false, and argmax finds a NaN first
    for i in special:
        state = states[i]
        if tokens[i] != NO_TOKEN:
            tokens[i] = _take(state, logits[i], int(tokens[i]), best_values[i])
    for i in scored:
        if tokens[i] != NO_TOKEN:
            states[i].log_prob = distribution.log_prob(raw[i], int(tokens[i]))
    return tokens


def _take(state: SamplerState, row: Logits, best: int, highest: np.float32) -> int:
    """The row's token, taken note of; NO_TOKEN where that fails. It fails for this row alone."""
    token = best
    try:
        if not state.is_greedy:
            if not math.isfinite(highest):
                raise OverflowError(f"the largest logit is {highest}: it must be a finite number")
            token = state.draw(row, highest)
        state.accept(token)
    except Exception as error:  # of this request: the others go on
        state.failure = repr(error)
        return NO_TOKEN
    return token


def check_sampling(sampling: EngineSampling) -> None:
    """Raise RequestInvalid for a value that has no meaning, or that could make a logit infinite.

    Numbers are compared as float32, which the arithmetic uses.
    """
    for name, low, high in _LIMITS:
        value = getattr(sampling, name)
        if value is None:  # a seed that is drawn
            continue
        with np.errstate(over="ignore", under="ignore"):
            used = float(np.float32(value)) if isinstance(value, float) else value
        if not low <= used <= high:  # NaN compares false
            raise RequestInvalid(
                f"{name} is {value!r}: it must be a number from {low:g} to {high:g}"
            )


class StopMatcher:
    """Reports after each new token whether the output ends in a stop word or holds a stop string.

    stop_words: token sequences, matched in the output alone. stop: strings, matched in the decoded
    output; they need `decode`, token ids to text. Before `min_tokens` nothing matches.
    """

    __slots__ = ("_keep", "_min_tokens", "_num_tokens", "_recent", "_text", "_words", "matched")

    def __init__(
        self,
        stop_words: Sequence[Sequence[int]] = (),
        stop: Sequence[str] = (),
        decode: Callable[[Sequence[int]], str] | None = None,
        min_tokens: int = 0,
    ) -> None:
        strings = tuple(text for text in stop if text)
        if strings and decode is None:
            raise RequestInvalid(
                f"stop strings {strings!r} need the engine's tokenizer: give token ids"
            )
        self._words = tuple(list(word) for word in stop_words if len(word))
        self._keep = max(map(len, self._words), default=0)
        self._recent: list[int] = []
        self._text = _TextMatcher(strings, decode) if strings and decode else None
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self.matched: tuple[int, ...] | str | None = None

    def feed(self, token: int) -> bool:
        """True when this token completes a stop; `matched` says which (the first given wins)."""
        self._num_tokens += 1
        if self._keep:
            self._recent.append(token)
            del self._recent[: -self._keep]
        text_match = self._text.feed(token) if self._text is not None else None
        if self._num_tokens < self._min_tokens:
            return False
        for word in self._words:
            if self._recent[-len(word) :] == word:
                self.matched = tuple(word)
                return True
        self.matched = text_match
        return text_match is not None


class _TextMatcher:
    """Incremental detokenisation and search. A stop string may end in the middle of a token."""

    __slots__ = ("_decode", "_keep", "_pending", "_prefix", "_strings", "_tail")

    def __init__(self, strings: tuple[str, ...], decode: Callable[[Sequence[int]], str]) -> None:
        self._strings = strings
        self._decode = decode
        self._keep = max(map(len, strings)) - 1
        # Tokens are decoded behind those before them: alone, some decoders drop a leading space.
        self._prefix: list[int] = []
        self._pending: list[int] = []
        self._tail = ""

    def feed(self, token: int) -> str | None:
        self._pending.append(token)
        before = self._decode(self._prefix) if self._prefix else ""
        text = self._decode(self._prefix + self._pending)
        searched = self._tail + text[len(before) :]
        if searched.endswith("\ufffd") and len(self._pending) < 4:
            # Part of a character; its other bytes come with the next tokens, four at most.
            searched = searched.rstrip("\ufffd")
        else:
            self._prefix, self._pending = self._pending, []
            self._tail = searched[-self._keep :] if self._keep else ""
        return next((string for string in self._strings if string in searched), None)


class _Penalties:
    """The distinct tokens seen so far, in flat arrays, so that applying touches these alone."""

    __slots__ = ("_counts", "_ids", "_places", "_sampling", "_size")

    def __init__(self, sampling: EngineSampling, prompt_ids: Sequence[int]) -> None:
        self._sampling = sampling
        seen = np.unique(np.asarray(prompt_ids, np.int64)) if len(prompt_ids) else np.empty(0, int)
        self._size = seen.size
        self._ids = np.zeros(max(64, 2 * seen.size), np.int64)
        self._ids[: seen.size] = seen
        self._counts = np.zeros(self._ids.size, np.float32)  # in the output only
        self._places = {int(token): place for place, token in enumerate(seen)}

    def count(self, token: int) -> None:
        place = self._places.get(token)
        if place is None:
            if self._size == self._ids.size:
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            place = self._places[token] = self._size
            self._ids[place] = token
            self._size += 1
        self._counts[place] += 1

    def apply(self, row: Logits) -> None:
        ids, counts = self._ids[: self._size], self._counts[: self._size]
        values = row[ids]
        penalty = np.float32(self._sampling.repetition_penalty)
        if penalty != 1:
            values = np.where(values < 0, values * penalty, values / penalty)
        values -= np.float32(self._sampling.presence_penalty) * (counts > 0)
        values -= np.float32(self._sampling.frequency_penalty) * counts
        row[ids] = values


def _has_penalties(sampling: EngineSampling) -> bool:
    return (
        sampling.repetition_penalty != 1
        or sampling.presence_penalty != 0
        or sampling.frequency_penalty != 0
    )
