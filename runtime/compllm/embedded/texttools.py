"""The tokenizer's uses inside the engine: stop strings, ends of lines, guides."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compllm.config import Config
from compllm.embedded.request import EngineRequest
from compllm.errors import RequestInvalid
from compllm.formats.json_files import read_json
from compllm.formats.tokenizer_files import end_ids
from compllm.plan import plan_guide

if TYPE_CHECKING:
    from compllm.embedded.guide_trial import GuideTrial

_TOKENIZER = "tokenizer.json"


class TextTools:
    """Of one engine directory. Thread-safe: requests are opened on the callers' threads."""

    def __init__(self, engine_dir: Path, vocab_size: int) -> None:
        self._engine_dir = engine_dir
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._compiler: Any = None
        self._trial: GuideTrial | None = None
        self._special: frozenset[int] | None = None

    def decode(self, ids: Any) -> str:
        """The text of these ids, special tokens included."""
        text: str = self._loaded().decode(list(ids), skip_special_tokens=False)
        return text

    def line_ends(self) -> frozenset[int]:
        """Tokens with a line feed in them; none for an engine without a tokenizer."""
        if not (self._engine_dir / _TOKENIZER).is_file():
            return frozenset()
        texts = self._loaded().decode_batch(
            [[each] for each in range(self._vocab_size)], skip_special_tokens=False
        )
        return frozenset(each for each, text in enumerate(texts) if "\n" in text)

    def _loaded(self) -> Any:
        with self._lock:
            if self._tokenizer is None:
                from tokenizers import Tokenizer

                self._tokenizer = Tokenizer.from_file(str(self._engine_dir / _TOKENIZER))
            return self._tokenizer

    def guide(self, request: EngineRequest) -> Any:
        """The request's `guide.Guide`, None where it has none. Raises RequestInvalid."""
        if request.guide_type is None:
            if request.guide is not None:
                raise RequestInvalid(
                    "guided_decoding_guide was given without guided_decoding_guide_type"
                )
            return None
        return self._guides().start(
            request.guide_type, request.guide, [request.end_id, *self.end_stop_words(request)]
        )

    def is_guide_quick(self, request: EngineRequest) -> bool:
        """Whether `guide` takes milliseconds at most: there is none, or it is known."""
        if request.guide_type is None:
            return True
        # The first guide of all waits for the tokenizer, which takes seconds.
        compiler = self._compiler
        return compiler is not None and compiler.is_quick(request.guide_type, request.guide)

    def warm_guides(self) -> None:
        """Load the tokenizer of guides and compile the plan's, where there is a tokenizer."""
        if (self._engine_dir / _TOKENIZER).is_file():
            plan = plan_guide(Config().generator.max_nodes, is_question_only=False, marks_cut=True)
            self._guides().start(plan.type, plan.text)

    def end_stop_words(self, request: EngineRequest) -> tuple[int, ...]:
        """Stop words of one token that is no text: end tokens of the model, and special ones. Like
        `end_id` they are forbidden before `min_tokens`, and end what a guide lets end."""
        single = {word[0] for word in request.stop_words if len(word) == 1}
        return tuple(sorted(single & self._special_ids())) if single else ()

    def close(self) -> None:
        """End what compiles guides."""
        if self._trial is not None:
            self._trial.close()

    def _guides(self) -> Any:
        with self._lock:
            if self._compiler is None:
                from compllm.embedded.guide import GuideCompiler
                from compllm.embedded.guide_trial import GuideTrial

                eos_ids = self._eos_ids()
                self._trial = GuideTrial(self._engine_dir, self._vocab_size, eos_ids)
                self._compiler = GuideCompiler(
                    self._engine_dir, self._vocab_size, eos_ids, self._trial.try_out
                )
            return self._compiler

    def _eos_ids(self) -> list[int]:
        return sorted(end_ids(self._engine_dir, self._vocab_size))

    def _special_ids(self) -> frozenset[int]:
        with self._lock:
            if self._special is None:
                special = set(self._eos_ids())
                path = self._engine_dir / _TOKENIZER
                if path.is_file():
                    added = read_json(path).get("added_tokens") or ()
                    special |= {each["id"] for each in added if each.get("special")}
                self._special = frozenset(special)
            return self._special
