"""Stop words and stop strings: where the output ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from compllm.embedded.sampling import StopMatcher
from compllm.errors import RequestInvalid


def feed(matcher: StopMatcher, tokens: Sequence[int]) -> int | None:
    """The number of tokens after which it matched."""
    return next((n for n, token in enumerate(tokens, 1) if matcher.feed(token)), None)


def decode_bytes(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode("utf-8", errors="replace")


def test_a_stop_word_matches_when_its_last_token_comes() -> None:
    matcher = StopMatcher([[1, 2, 3], [9]])
    assert feed(matcher, [1, 2, 1, 2, 3, 9]) == 5
    assert matcher.matched == (1, 2, 3)


@given(st.text(min_size=0, max_size=30), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_stop_strings_match_as_soon_as_the_decoded_text_holds_one(
    text: str, stops: list[str]
) -> None:
    matcher = StopMatcher((), stops, decode_bytes)
    lengths = [len(text[:n].encode()) for n in range(len(text) + 1) for s in stops if s in text[:n]]
    assert feed(matcher, list(text.encode())) == min(lengths, default=None)


def test_a_stop_string_may_end_inside_a_token() -> None:
    pieces = {1: "Hello", 2: " wor", 3: "ld\n\nNext"}
    matcher = StopMatcher((), ["\n\n"], lambda ids: "".join(pieces[i] for i in ids))
    assert feed(matcher, [1, 2, 3]) == 3
    assert matcher.matched == "\n\n"


@pytest.mark.parametrize("text", ["Hello, wörld!\nNext 🙂 line\n\nend", "1 | Was ist 漢字?\n2 | x"])
def test_stop_strings_on_the_real_tokenizer(base_dir: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(base_dir / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    for stop in {text[i:j] for i in range(len(text)) for j in range(i + 1, i + 5)} - {""}:
        expected = next(n for n in range(len(ids) + 1) if stop in tokenizer.decode(ids[:n]))
        assert feed(StopMatcher((), [stop], tokenizer.decode), ids) == expected


def test_broken_bytes_do_not_hide_a_later_stop() -> None:
    matcher = StopMatcher((), ["b"], decode_bytes)
    assert feed(matcher, [0xFF] * 9 + [ord("a"), ord("b")]) == 11


def test_nothing_stops_before_min_tokens() -> None:
    matcher = StopMatcher([[1]], min_tokens=3)
    assert feed(matcher, [1, 1, 2, 1]) == 4


def test_stop_strings_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(RequestInvalid, match="tokenizer"):
        StopMatcher((), ["x"])
