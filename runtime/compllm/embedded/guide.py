"""Guided decoding: which tokens may come next under a regex, a JSON schema or a grammar.

`executor.py` holds one `GuideCompiler` per engine and starts a `Guide` per guided request, on the
thread that submits it: compiling takes milliseconds, a monstrous grammar a second. `sampling.py`
masks with it once per token. llguidance does the parsing; here are the types and the meaning that
TensorRT-LLM (xgrammar) gives them, the end token, a cache, and one kind of error.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compllm.errors import ArtefactError, RequestInvalid

GUIDE_TYPES = ("regex", "json", "json_schema", "ebnf_grammar")

_MAX_GUIDE_CHARS = 100_000
_CACHE_SIZE = 64  # compiled guides; a server sees few different ones

# Without a bound a small model may write white space to the end of its tokens.
_JSON_SPACE = r"[\x20\x0A\x0D\x09]{1,20}"

# The default, 50,000, breaks off masks of free text inside recursive rules. 10 items take 3 us.
_LIMITS = LLParserLimits(step_max_items=500_000)

# llguidance decides a slice of the vocabulary at once where the guide allows all of its tokens. Its
# own slices know JSON strings; the first here adds prose that a plan's texts allow, which cuts the
# mask of a plan's token from 750 to 60 us.
_SLICES = [r'[^"\\\x00-\x1F\x7F?|<>]{1,16}', *LLTokenizer.general_slices()]

# A byte of the bitmask, lowest bit first, to eight floats; minimum with +inf changes nothing. Each
# row is one 32-byte item, because numpy gathers items four times as fast as rows.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_BOUNDS = np.where(_BITS, np.float32(np.inf), np.float32(-np.inf)).view("V32")[:, 0]


class Guide:
    """The state of one guided request. Used by one thread at a time."""

    __slots__ = ("_bits", "_end_ids", "_foreign_ends", "_matcher", "_other_ends", "error")

    def __init__(
        self, matcher: LLMatcher, vocab_size: int, eos_ids: frozenset[int], end_ids: frozenset[int]
    ) -> None:
        self._matcher = matcher
        self._bits = np.zeros(-(-vocab_size // 32) * 4, np.uint8)
        self._end_ids = end_ids
        self._foreign_ends = tuple(end_ids - eos_ids)  # end this request, unknown to the matcher
        self._other_ends = tuple(eos_ids - end_ids)  # known to the matcher, no end for this request
        self.error: str | None = None  # why no token is possible any more

    @property
    def is_terminated(self) -> bool:
        """Nothing but the end can follow: no further token needs to be computed."""
        return bool(self._matcher.is_stopped()) and self.error is None

    @property
    def is_accepting(self) -> bool:
        """The output so far is complete under the guide, though it may go on."""
        return bool(self._matcher.is_accepting())

    def mask(self, row: NDArray[np.float32]) -> None:
        """Set the logits of forbidden tokens to -inf; all of them when there is an `error`."""
        bits = self._bits
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if self._matcher.is_error():
            self._fail()
            row.fill(-np.inf)
            return
        for token in self._other_ends:
            bits[token >> 3] &= ~np.uint8(1 << (token & 7))
        if self._foreign_ends and self._matcher.is_accepting():
            for token in self._foreign_ends:
                bits[token >> 3] |= np.uint8(1 << (token & 7))
        np.minimum(row, _BOUNDS.take(bits).view(np.float32)[: row.size], out=row)

    def accept(self, token: int) -> None:
        """Advance by a generated token."""
        if token not in self._end_ids and not self._matcher.consume_token(token):
            self._fail()

    def forced_tokens(self) -> list[int]:
        """Tokens that must come next whatever the model says; costs 5 us. None is accepted yet."""
        return list(self._matcher.compute_ff_tokens())

    def _fail(self) -> None:
        self.error = self.error or _first_line(self._matcher.get_error())


class GuideCompiler:
    """Compiles guides for one tokenizer and remembers the latest. Safe to share between threads.

    tokenizer: `tokenizer.json`, or the directory that holds it. vocab_size: width of the logits, at
    least the tokenizer's. eos_ids: the model's own end tokens. Raises ArtefactError.
    """

    def __init__(self, tokenizer: Path, vocab_size: int, eos_ids: Iterable[int]) -> None:
        path = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = frozenset(eos_ids)
        if not self._eos_ids or not all(0 <= token < vocab_size for token in self._eos_ids):
            raise ArtefactError(
                f"end tokens {sorted(self._eos_ids)}: guided decoding needs at least one, "
                f"each below the vocabulary size {vocab_size}"
            )
        self._tokenizer = _load_tokenizer(path, vocab_size, sorted(self._eos_ids))
        self._compiled: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, guide_type: str, text: str | None, end_ids: Iterable[int] = ()) -> Guide:
        """A guide at its start. end_ids: what ends this request (-1 is none) where the guide allows
        an end. Raises RequestInvalid for a type or text it cannot use."""
        key = (guide_type, text or "")
        with self._lock:
            matcher = self._compiled.get(key)
            if matcher is not None:
                self._compiled.move_to_end(key)
        if matcher is None:  # outside the lock: a slow one must not hold up the others
            matcher = self._compile(*key)
            with self._lock:
                self._compiled[key] = matcher
                while len(self._compiled) > _CACHE_SIZE:
                    self._compiled.popitem(last=False)
        with self._lock:  # a matcher must not be copied by two threads at once
            copied = matcher.deep_copy()
        ends = frozenset(token for token in end_ids if 0 <= token < self._vocab_size)
        return Guide(copied, self._vocab_size, self._eos_ids, ends)

    def _compile(self, guide_type: str, text: str) -> LLMatcher:
        if guide_type not in GUIDE_TYPES:
            raise RequestInvalid(
                f"guided_decoding_guide_type is {guide_type!r}: it must be one of "
                + ", ".join(GUIDE_TYPES)
            )
        if len(text) > _MAX_GUIDE_CHARS:
            raise RequestInvalid(
                f"the {guide_type} guide has {len(text)} characters: at most {_MAX_GUIDE_CHARS}"
            )
        if not text and guide_type != "json":
            raise RequestInvalid(
                f"the {guide_type} guide is empty: guided_decoding_guide is missing"
            )
        try:
            grammar = _grammar(guide_type, text)
        except Exception as error:  # the converter raises bare Exception for bad grammars
            raise _bad_guide(guide_type, text, str(error)) from error
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise _bad_guide(guide_type, text, matcher.get_error())
        return matcher


def _grammar(guide_type: str, text: str) -> str:
    if guide_type == "regex":
        return str(LLMatcher.grammar_from_regex(text))
    if guide_type == "ebnf_grammar":
        return str(LLMatcher.grammar_from_lark(_lark(text)))
    if guide_type == "json":
        # xgrammar's own JSON grammar: an object or an array at the top.
        text = '{"anyOf": [{"type": "object"}, {"type": "array"}]}'
    json.loads(text)  # its message for what is no JSON is better
    options: Any = {"whitespace_pattern": _JSON_SPACE}
    return str(LLMatcher.grammar_from_json_schema(text, defaults=options))


_EBNF_TOKEN = re.compile(
    r"""(?P<quoted>"(?:\\.|[^"\\\n])*" | \[(?:\\.|[^\]\\\n])*\])
      | (?P<comment>\#[^\n]*)
      | (?P<root>(?<![\w-])root(?![\w-]))
      | (?P<space>\s+)(?=(?P<head>[\w-]+\s*::=)?)""",
    re.VERBOSE,
)
_EBNF_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|(.))")


def _lark(text: str) -> str:
    """xgrammar's EBNF as llguidance's Lark.

    The converter reads a narrower dialect: a rule on one line, fewer escapes. It turns rules
    without recursion into lexemes, as fast as a regex, but never the root; hence the rule before
    it. In a recursive grammar a lexeme takes as much as it can: what follows must not begin alike.
    """

    def without_comment(match: re.Match[str]) -> str:
        return "" if match["comment"] else match[0]

    def converted(match: re.Match[str]) -> str:
        if match["quoted"]:
            return _EBNF_ESCAPE.sub(_escape, match["quoted"])
        if match["root"]:
            return "guide-root"
        return "\n" if match["head"] and "\n" in match["space"] else " "

    # Comments go first: whether a line break ends a rule is seen from what follows it.
    plain = _EBNF_TOKEN.sub(converted, _EBNF_TOKEN.sub(without_comment, text)).strip()
    if not re.search(r"(?m)^guide-root\s*::=", plain):
        raise ValueError("there is no rule 'root ::= ...'")
    return str(gbnf_to_lark(f"root ::= guide-root\n{plain}\n"))


def _escape(match: re.Match[str]) -> str:
    digits = match[1] or match[2] or match[3]
    if not digits:
        return match[0] if match[4] in '"\\[]nrt' else f"\\x{ord(match[4]):02x}"
    char = chr(int(digits, 16))
    return char if ord(char) >= 0x80 else f"\\x{ord(char):02x}"


def _load_tokenizer(path: Path, vocab_size: int, eos_ids: list[int]) -> LLTokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return LLTokenizer(
            tokenizer.to_str(), n_vocab=vocab_size, eos_token=eos_ids, slices=_SLICES
        )
    except Exception as error:  # both libraries raise bare Exception
        raise ArtefactError(f"{path} gives no tokenizer for guided decoding: {error}") from error


def _bad_guide(guide_type: str, text: str, reason: str) -> RequestInvalid:
    shown = text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"
    return RequestInvalid(
        f"cannot use the {guide_type} guide {shown!r}: {' '.join(reason.split())}"
    )


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]
