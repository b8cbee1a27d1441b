"""The embedded engine in this process, as the Backend that the path is run on.

An evaluation has thousands of requests and no clients: Triton would carry them through a second
process on the same two cores and change no token. The path above is the product's own, whole; the
engine below is the one that Triton serves. With it here, adapters that are not built in yet can be
loaded live, and the memory of everything is this process's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.store import source_hash
from compllm.backend import Chunk, GenerateRequest
from compllm.backends.tokenizer import Detokenizer, StopStrings, Tokenizer
from compllm.errors import BackendError, BackendRejected, ConfigError, EngineClosed, Situation
from compllm.types import Usage

if TYPE_CHECKING:
    from compllm.embedded.executor import Executor
    from compllm.embedded.request import EngineEvent, EnginePerf, EngineRequest
    from compllm.formats.adapters import LoraWeights
    from compllm.formats.shape import BaseShape


class ExecutorBackend:
    """A Backend over an `Executor` of this process. Closing it leaves the executor open."""

    def __init__(self, executor: Executor, tokenizer: Tokenizer) -> None:
        self._executor = executor
        self._tokenizer = tokenizer

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """See `Backend.generate`."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[EngineEvent] = asyncio.Queue()

        def on_event(event: EngineEvent) -> None:
            with suppress(RuntimeError):  # the loop has ended: no caller waits any more
                loop.call_soon_threadsafe(inbox.put_nowait, event)

        ids = self._tokenizer.encode(request.prompt)
        wanted = self._engine_request(request, ids)
        if wanted.guide is not None:  # compiling a guide takes milliseconds
            handle = await asyncio.to_thread(self._executor.submit, wanted, on_event)
        else:
            handle = self._executor.submit(wanted, on_event)
        text, stops = Detokenizer(self._tokenizer), StopStrings(request.sampling.stop)
        num_tokens, is_over = 0, False
        try:
            while not is_over:
                event = await inbox.get()
                is_over = event.is_final
                if event.error is not None:
                    raise _error(event.error, event.situation)
                num_tokens += len(event.token_ids)
                new = stops.push(text.push(event.token_ids))
                if not is_over:
                    yield Chunk(new, len(event.token_ids))
                    continue
                yield Chunk(
                    new + stops.push(text.flush()) + stops.flush(),
                    len(event.token_ids),
                    event.finish_reason,
                    _usage(event.perf, len(ids), num_tokens),
                )
        finally:
            if not is_over:
                self._executor.cancel(handle)

    async def aclose(self) -> None:
        """Nothing: contestants come and go, the executor stays."""

    def _engine_request(self, request: GenerateRequest, ids: list[int]) -> EngineRequest:
        from compllm.embedded.request import EngineRequest, EngineSampling

        special, sampling = self._tokenizer.special, request.sampling
        is_greedy = sampling.temperature == 0
        return EngineRequest(
            tuple(ids),
            sampling.max_tokens,
            special.end_id,
            EngineSampling(repetition_penalty=sampling.repetition_penalty)
            if is_greedy
            else EngineSampling(
                sampling.temperature,
                sampling.top_k,
                sampling.top_p,
                sampling.repetition_penalty,
                seed=sampling.seed,
            ),
            stop_words=tuple((end,) for end in special.more_end_ids),
            stop=sampling.stop,
            task_id=request.adapter_id,
            guide_type=request.guide.type if request.guide else None,
            guide=request.guide.text if request.guide else None,
            is_streamed=request.is_streamed,
        )


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """The engine, its adapters by name, and what its answers depend on."""

    executor: Executor
    tokenizer: Tokenizer
    shape: BaseShape
    adapters: Mapping[str, int]  # name -> lora_task_id, which is made of name and content
    num_adapter_parameters: Mapping[str, int]
    identity: str  # hash of the base, its precision and the runtime; adapters are in their ids

    def backend(self) -> ExecutorBackend:
        return ExecutorBackend(self.executor, self.tokenizer)

    def close(self) -> None:
        self.executor.close()


def open_engine(directory: Path, adapters: Sequence[str] = ()) -> LocalEngine:
    """Open an engine directory; `adapters` are `NAME=DIR` of PEFT adapters to load beside, or in
    place of, those of the engine. Raises ArtefactError and ConfigError."""
    from compllm.embedded.executor import Executor
    from compllm.formats.adapters import read_peft
    from compllm.formats.manifest import Manifest
    from compllm.formats.shape import BaseShape

    manifest = Manifest.read(directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    shape = BaseShape.from_config(config, name=manifest.base_name, sha256=manifest.base_sha256)
    executor = Executor(directory)
    ids = dict(executor.adapter_names)
    built = manifest.load_adapters(directory, shape)
    sizes = {adapter.name: num_parameters(adapter.modules) for adapter in built}
    try:
        for argument in adapters:
            name, separator, path = argument.partition("=")
            if not separator:
                raise ConfigError(f"--adapter {argument!r}: expected NAME=DIR")
            adapter = read_peft(Path(path), shape, name)
            executor.load_adapter(adapter.task_id, adapter)
            ids[name] = adapter.task_id
            sizes[name] = num_parameters(adapter.modules)
    except BaseException:
        executor.close()
        raise
    facts = (manifest.base_key, manifest.dtype, dict(manifest.versions), _code_hash())
    identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    tokenizer = Tokenizer.from_dir(directory)
    return LocalEngine(executor, tokenizer, shape, ids, sizes, identity)


def _code_hash() -> str:
    """Of what computes tokens: a change of the arithmetic may change them."""
    import compllm.embedded
    from compllm.embedded.ops import library_path

    names = ("executor", "guide", "lora", "model", "network", "ops", "runner", "sampling")
    folder = Path(compllm.embedded.__file__).parent
    library = library_path()
    return source_hash([folder / f"{name}.py" for name in names] + ([library] if library else []))


def num_parameters(modules: Mapping[tuple[int, str], LoraWeights]) -> int:
    """Of an adapter: the entries of all its factors."""
    return sum(weights.a.size + weights.b.size for weights in modules.values())


def _error(text: str, situation: Situation) -> Exception:
    """A dead engine ends the evaluation, which would else score its silence as wrong answers."""
    if text.startswith(("the engine failed", "the engine is shut down")):
        return EngineClosed(text)
    return BackendRejected(text) if situation.http_status < 500 else BackendError(text)


def _usage(perf: EnginePerf | None, num_input_tokens: int, num_output_tokens: int) -> Usage:
    if perf is None:
        return Usage(num_input_tokens, num_output_tokens)

    def since(at_ns: int) -> float:
        return max(0.0, (at_ns - perf.arrival_ns) / 1e9) if at_ns else 0.0

    return Usage(
        num_input_tokens,
        num_output_tokens,
        perf.kv_reused_blocks,
        perf.kv_alloc_total_blocks,
        since(perf.first_scheduled_ns),
        since(perf.first_token_ns),
        since(perf.last_token_ns),
    )
