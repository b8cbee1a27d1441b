"""The tokenizer's uses inside the engine: stop strings, ends of lines, guides."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from compllm.embedded.request import EngineRequest
from compllm.errors import RequestInvalid
from compllm.formats.tokenizer_files import end_ids

_TOKENIZER = "tokenizer.json"


class TextTools:
    """Of one engine directory. Thread-safe: requests are opened on the callers' threads."""

    def __init__(self, engine_dir: Path, vocab_size: int) -> None:
        self._engine_dir = engine_dir
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._compiler: Any = None
        self._end_ids: frozenset[int] = frozenset()  # of the model, when there is a compiler

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
        with self._lock:
            if self._compiler is None:
                from compllm.embedded.guide import GuideCompiler

                self._end_ids = frozenset(end_ids(self._engine_dir, self._vocab_size))
                self._compiler = GuideCompiler(self._engine_dir, self._vocab_size, self._end_ids)
        # A request has one end token. Clients send a model's others as stop words.
        stops = {word[0] for word in request.stop_words if len(word) == 1}
        ends = [request.end_id, *(stops & self._end_ids)]
        return self._compiler.start(request.guide_type, request.guide, ends)
