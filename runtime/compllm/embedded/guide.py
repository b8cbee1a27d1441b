"""Guided decoding: which tokens may come next under a regex, a JSON schema or a grammar.

`executor.py` holds one `GuideCompiler` per engine and starts a `Guide` per guided request, on the
thread that submits it. `sampling.py` masks with it once per token. llguidance does the parsing;
here are the types and the meaning that TensorRT-LLM (xgrammar) gives them, the end token, a cache,
and one kind of error.

The plan's own guide is compiled in place, in milliseconds. Any other text is a client's, may take
minutes and gigabytes, and is tried in `guide_trial.py` before it is compiled here.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compllm.errors import ArtefactError, RequestInvalid
from compllm.formats.json_files import read_json
from compllm.plan import plan_guide

GUIDE_TYPES = ("regex", "json", "json_schema", "ebnf_grammar")

_MAX_GUIDE_CHARS = 100_000
_CACHE_SIZE = 64  # compiled guides; a server sees few different ones

# Without a bound a small model may write white space to the end of its tokens.
_JSON_SPACE = r"[\x20\x0A\x0D\x09]{1,20}"

# Of clients' guides. 10 items take 3 us; the default, 50,000, breaks off masks of free text inside
# recursive rules.
_LIMITS = LLParserLimits(step_max_items=100_000, max_lexer_states=50_000)
_OWN_LIMITS = LLParserLimits(step_max_items=500_000)
MAX_MASK_S = 10.0  # of all masks of a request with a client's guide
_MAX_CACHE_BYTES = 512 * 2**20  # of clients' compiled guides, as their trials measured them
_MAX_PLAN_NODES = 32  # of a plan's guide that is known as our own

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

    __slots__ = (
        "_bits",
        "_end_ids",
        "_foreign_ends",
        "_is_prepared",
        "_mask_s",
        "_matcher",
        "_other_ends",
        "error",
        "is_own",
    )

    def __init__(
        self,
        matcher: LLMatcher,
        vocab_size: int,
        eos_ids: frozenset[int],
        end_ids: frozenset[int],
        *,
        is_own: bool = False,
    ) -> None:
        self._matcher = matcher
        self.is_own = is_own  # the plan's: its masks are quick
        self._is_prepared = False
        self._mask_s = 0.0
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

    def prepare(self) -> None:
        """Compute what `mask` needs, unless that is done; a client's guide may take a second."""
        if self._is_prepared or self.error:
            return
        started = time.perf_counter()
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._mask_s += time.perf_counter() - started
        if self._matcher.is_error():
            self._fail()
        elif self._mask_s > MAX_MASK_S and not self.is_own:
            self.error = (
                f"the masks of this guide took more than {MAX_MASK_S:g} s: make it simpler, "
                "with longer lexemes and less recursion"
            )
        self._is_prepared = True

    def mask(self, row: NDArray[np.float32]) -> None:
        """Set the logits of forbidden tokens to -inf; all of them when there is an `error`."""
        self.prepare()
        if self.error:
            row.fill(-np.inf)
            return
        bits = self._bits
        for token in self._other_ends:
            bits[token >> 3] &= ~np.uint8(1 << (token & 7))
        if self._foreign_ends and self._matcher.is_accepting():
            for token in self._foreign_ends:
                bits[token >> 3] |= np.uint8(1 << (token & 7))
        np.minimum(row, _BOUNDS.take(bits).view(np.float32)[: row.size], out=row)

    def accept(self, token: int) -> None:
        """Advance by a generated token."""
        self._is_prepared = False
        if token not in self._end_ids and not self._matcher.consume_token(token):
            self._fail()

    def _fail(self) -> None:
        self.error = self.error or _first_line(self._matcher.get_error())


@dataclass(slots=True)
class _Compiled:
    matcher: LLMatcher
    is_own: bool
    num_bytes: int  # as its trial measured it


class GuideCompiler:
    """Compiles guides for one tokenizer and remembers the latest. Safe to share between threads.

    tokenizer: `tokenizer.json`, or the directory that holds it. vocab_size: width of the logits, at
    least the tokenizer's. eos_ids: the model's own end tokens; where it has none, requests name
    theirs. try_out: called with the type and text of a client's guide before it is compiled;
    returns the bytes that takes, or raises RequestInvalid. Raises ArtefactError.
    """

    def __init__(
        self,
        tokenizer: Path,
        vocab_size: int,
        eos_ids: Iterable[int],
        try_out: Callable[[str, str], int] = lambda guide_type, text: 0,
    ) -> None:
        path = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = frozenset(eos_ids) or _stand_in(path)
        self._try_out = try_out
        if not all(0 <= token < vocab_size for token in self._eos_ids):
            raise ArtefactError(
                f"end tokens {sorted(self._eos_ids)}: each must be below the vocabulary size "
                f"{vocab_size}"
            )
        self._tokenizer = _load_tokenizer(path, vocab_size, sorted(self._eos_ids))
        self._compiled: OrderedDict[tuple[str, str], _Compiled] = OrderedDict()  # of clients
        self._own: OrderedDict[tuple[str, str], _Compiled] = OrderedDict()
        self._lock = threading.Lock()

    def is_quick(self, guide_type: str, text: str | None) -> bool:
        """Whether `start` takes milliseconds at most."""
        with self._lock:
            if self._known((guide_type, text or "")) is not None:
                return True
        return _is_plan_guide(guide_type, text or "")

    def start(self, guide_type: str, text: str | None, end_ids: Iterable[int] = ()) -> Guide:
        """A guide at its start. end_ids: what ends this request (-1 is none) where the guide allows
        an end. Raises RequestInvalid for a type or text it cannot use."""
        key = (guide_type, text or "")
        with self._lock:
            found = self._known(key)
        if found is None:  # outside the lock: a slow one must not hold up the others
            found = self._compile(*key)
            with self._lock:
                self._remember(key, found)
        with self._lock:  # a matcher must not be copied by two threads at once
            copied = found.matcher.deep_copy()
        ends = frozenset(token for token in end_ids if 0 <= token < self._vocab_size)
        return Guide(copied, self._vocab_size, self._eos_ids, ends, is_own=found.is_own)

    def _known(self, key: tuple[str, str]) -> _Compiled | None:
        for guides in (self._own, self._compiled):
            if key in guides:
                guides.move_to_end(key)
                return guides[key]
        return None

    def _remember(self, key: tuple[str, str], found: _Compiled) -> None:
        """Clients' guides never push out the plan's."""
        guides = self._own if found.is_own else self._compiled
        guides[key] = found
        while len(guides) > 1 and (
            len(guides) > _CACHE_SIZE
            or sum(each.num_bytes for each in guides.values()) > _MAX_CACHE_BYTES
        ):
            guides.popitem(last=False)

    def _compile(self, guide_type: str, text: str) -> _Compiled:
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
        is_own = _is_plan_guide(guide_type, text)
        num_bytes = 0 if is_own else self._try_out(guide_type, text)
        try:
            grammar = _grammar(guide_type, text)
        except Exception as error:  # the converter raises bare Exception for bad grammars
            raise _bad_guide(guide_type, text, str(error)) from error
        limits = _OWN_LIMITS if is_own else _LIMITS
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise _bad_guide(guide_type, text, matcher.get_error())
        return _Compiled(matcher, is_own, num_bytes)


def _is_plan_guide(guide_type: str, text: str) -> bool:
    """Whether `plan.plan_guide` writes this very text: such a guide is known to be harmless."""
    if guide_type != "regex" or len(text) > _MAX_GUIDE_CHARS:
        return False
    numbers = [int(each) for each in re.findall(r"\(\\n(\d{1,2}) [(\\]", text)]
    num_nodes = max(numbers, default=1)
    if num_nodes > _MAX_PLAN_NODES:
        return False
    return any(
        text == plan_guide(num_nodes, is_question_only=is_question, marks_cut=is_cut).text
        for is_question in (False, True)
        for is_cut in (True, False)
    )


def _stand_in(path: Path) -> frozenset[int]:
    """A special token, for llguidance wants an end token that is no text: the first, else 0."""
    added = read_json(path).get("added_tokens") or ()
    special = (each["id"] for each in added if each.get("special"))
    return frozenset({next(special, 0)})


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
