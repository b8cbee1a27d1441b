"""Text to token ids and back, at the edge of the gRPC client: prompts in, incremental text out.

The one trust boundary of prompts is here: special tokens are recognised in template segments alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import tokenizers

from compllm.backend import Prompt
from compllm.errors import ConfigError

_MAX_TEMPLATES = 1024  # parts whose ids are kept
_SPECIAL = re.compile(r"<\|[^|<>]+\|>")  # as every known chat template spells its tokens
_UNFINISHED = "\ufffd"  # what a decoder makes of bytes that are not (yet) a character
_MAX_TOKENS = 4  # of one character: a token holds a byte of it at least
_MAX_UNSURE = 3  # of its bytes while it lacks one; some decoders show each as _UNFINISHED
# Tokens. Half of it holds the bytes that may be unsure, whatever the tokens are.
_MAX_WINDOW = 32


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """What ends and pads a sequence, from the files beside tokenizer.json."""

    end_id: int  # ends a turn of the assistant
    pad_id: int
    more_end_ids: tuple[int, ...] = ()  # generation_config.json may name several


class Tokenizer:
    """A Hugging Face fast tokenizer. Safe to share between threads."""

    def __init__(self, serialized: str, special: SpecialIds) -> None:
        """`serialized`: the text of a tokenizer.json."""
        self.special = special
        self._template = tokenizers.Tokenizer.from_str(serialized)
        # A template's parts come again with every prompt.
        self._template_ids = lru_cache(_MAX_TEMPLATES)(partial(_template_ids, self._template))
        self._data = tokenizers.Tokenizer.from_str(_all_added_special(serialized))
        self._data.encode_special_tokens = True
        added = self._data.get_added_tokens_decoder().values()
        self._spellings = tuple(
            each.content for each in added if each.special and len(each.content) > 1
        )
        self._special_texts = {
            number: each.content
            for number, each in self._template.get_added_tokens_decoder().items()
            if each.special and each.content
        }
        for each in (self._template, self._data):
            each.no_truncation()  # a checkpoint's training-time settings are not ours
            each.no_padding()

    @classmethod
    def from_dir(cls, path: str | Path) -> Tokenizer:
        """Read tokenizer.json and the special ids of a checkpoint or engine directory.

        Raises ConfigError when a file is missing or wrong.
        """
        directory = Path(path)
        try:
            serialized = (directory / "tokenizer.json").read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"no readable tokenizer.json in {directory} ({error.strerror}): give the directory "
                "of a checkpoint or of an engine"
            ) from error
        try:
            return cls(serialized, _special_ids(directory, serialized))
        except ConfigError:
            raise
        except Exception as error:  # tokenizers raises bare Exception on a bad file
            raise ConfigError(f"{directory / 'tokenizer.json'} is not usable: {error}") from error

    @property
    def vocab_size(self) -> int:
        return int(self._template.get_vocab_size(with_added_tokens=True))

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of all segments in a row, each tokenised by itself."""
        ids: list[int] = []
        for segment in prompt:
            ids += (
                self._template_ids(segment.text)
                if segment.is_template
                else _ids(self._data, segment.text)
            )
        return ids

    def text(self, prompt: Prompt) -> str:
        """All segments as one text, for a server that tokenises it itself: a special token's
        spelling in data gets a blank after its first character, and so is none any more."""
        return "".join(
            segment.text if segment.is_template else self._broken(segment.text)
            for segment in prompt
        )

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens count as such."""
        ids: list[int] = self._template.encode(text, add_special_tokens=False).ids
        return ids

    def _broken(self, text: str) -> str:
        for _ in self._spellings:  # breaking one may complete another, but hardly ever
            found = [spelling for spelling in self._spellings if spelling in text]
            if not found:
                break
            for spelling in found:
                text = text.replace(spelling, f"{spelling[0]} {spelling[1:]}")
        return text

    def special_ids(self, texts: Iterable[str]) -> dict[int, str]:
        """The special tokens, id and spelling, that are spelt in any of these texts."""
        known = self._special_texts.items()
        return {number: each for number, each in known if any(each in text for text in texts)}

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self._template.decode(ids, skip_special_tokens=True))


def _template_ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """Raises ConfigError for a special token that the tokenizer would spell out as text."""
    for token in _SPECIAL.findall(text):
        if tokenizer.token_to_id(token) is None:
            raise ConfigError(
                f"the chat template writes {token}, which is no token of the model's tokenizer: "
                "set the catalogue's template (under [base]) to the model's own"
            )
    return _ids(tokenizer, text)


def _ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    # Lone surrogates come from broken input decoding and have no bytes of their own.
    text = text.encode("utf-8", "replace").decode("utf-8")
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


class Detokenizer:
    """New tokens of one sequence in, new text out: all pushes and the flush joined are the text.

    Decodes a short window, not the whole sequence: a token's text may depend on its predecessor (a
    leading space) and a character may be spread over tokens, so the window starts at the last
    boundary where the text was complete. The method is that of vLLM and text-generation-inference.

    Where no boundary comes, because bytes form no characters or tokens have no text, the window
    moves on all the same, and all text is out but for what may still become one character.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # the window
        self._num_read = 0  # leading ids of the window up to the last boundary
        self._num_shown = 0  # leading characters of the window's text that are out

    def push(self, ids: Iterable[int]) -> str:
        """Text that became certain; may be empty."""
        self._ids += ids
        for end in range(len(self._ids), max(self._num_read, len(self._ids) - _MAX_TOKENS), -1):
            text = self._tokenizer.decode(self._ids[:end])
            if not text.endswith(_UNFINISHED):
                return self._take(text, end)
        if len(self._ids) - self._num_read < _MAX_TOKENS:
            return ""
        # More tokens than one character has: the bytes before the last ones are none.
        text = self._tokenizer.decode(self._ids)
        new = text[self._num_shown : -_MAX_UNSURE]
        self._num_shown += len(new)
        self._bound(text)
        return new

    def flush(self) -> str:
        """The rest, also where it is no complete character."""
        return self._take(self._tokenizer.decode(self._ids), len(self._ids))

    def _take(self, text: str, end: int) -> str:
        """The new part of the text of the first ids, which is whole."""
        new = text[self._num_shown :]
        if new:  # tokens without text of their own stay: they may shape their successor's
            self._ids, self._num_read = self._ids[self._num_read :], end - self._num_read
            self._num_shown = len(self._tokenizer.decode(self._ids[: self._num_read]))
        elif end == len(self._ids):
            self._bound(text)
        return new

    def _bound(self, text: str) -> None:
        """Keep the last ids of a long window; what is not out yet stays at the end of its text."""
        if len(self._ids) > _MAX_WINDOW:
            num_held = len(text) - self._num_shown
            self._ids, self._num_read = self._ids[-_MAX_WINDOW // 2 :], 0
            self._num_shown = len(self._tokenizer.decode(self._ids)) - num_held


class StopStrings:
    """Cuts a stream of text at the first stop string, and holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """Text that is safe to show. Nothing more comes after `is_stopped`."""
        if self.is_stopped:
            return ""
        held = self._held + text
        found = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            self._held = ""
            return held[: min(found)]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held back, when the stream ended without a match."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, without being all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _all_added_special(serialized: str) -> str:
    """The same tokenizer with every added token special, so that data can spell none of them: some
    families mark tokens such as `<tool_call>` as ordinary. Runs of blanks stay what they are."""
    loaded = json.loads(serialized)
    for token in loaded.get("added_tokens") or ():
        if token["content"].strip():
            token["special"] = True
    return json.dumps(loaded)


def _special_ids(directory: Path, serialized: str) -> SpecialIds:
    """tokenizer_config.json's eos token first: in chat models it is the end of a turn, while
    config.json may still name the base model's end of text."""
    tokenizer_config = _read_json(directory / "tokenizer_config.json")
    configs = [_read_json(directory / f"{name}.json") for name in ("generation_config", "config")]
    vocab = tokenizers.Tokenizer.from_str(serialized)
    ends = [
        *_ids_of_token(vocab, tokenizer_config.get("eos_token")),
        *(end for config in configs for end in _id_list(config.get("eos_token_id"))),
    ]
    if not ends:
        raise ConfigError(
            f"no end token in {directory}: tokenizer_config.json names no eos_token and neither "
            "generation_config.json nor config.json an eos_token_id"
        )
    pads = [
        *_ids_of_token(vocab, tokenizer_config.get("pad_token")),
        *(pad for config in configs for pad in _id_list(config.get("pad_token_id"))),
        ends[0],
    ]
    more = tuple(dict.fromkeys(end for end in ends if end != ends[0]))
    return SpecialIds(ends[0], pads[0], more)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}  # none of these files is obligatory by itself
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return loaded


def _ids_of_token(vocab: tokenizers.Tokenizer, token: object) -> list[int]:
    """`token`: its text, or a mapping with `content`, as older files write it."""
    content = token.get("content") if isinstance(token, dict) else token
    found = vocab.token_to_id(content) if isinstance(content, str) else None
    return [] if found is None else [found]


def _id_list(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, int)]
