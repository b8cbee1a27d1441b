"""What an engine says of its own limits: how many requests it batches, how its KV cache is cut.

Asked of the model's configuration before a process's first query, for `admission.py`: requests
beyond what the engine batches would wait in its own queue, first come, first served, where our
order cannot reach them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from compllm.admission import Admission
from compllm.backend import Backend
from compllm.errors import BackendUnavailable, CompllmError

UNTOLD = 64  # requests in flight at an engine that does not say how many it batches
EMBEDDED = 32  # ExecutorOptions.max_batch_size, which a client without OpenVINO cannot import


@runtime_checkable
class TellsLimits(Protocol):
    """A Backend that knows what its engines batch."""

    async def max_batch_size(self, model: str) -> int | None: ...


async def max_batch_size(backend: Backend, model: str) -> int | None:
    """Requests that this engine computes in one step; None where the backend cannot tell."""
    return await backend.max_batch_size(model) if isinstance(backend, TellsLimits) else None


def batch_size_of(config: Any) -> int | None:
    """The same from the ModelConfig (a protobuf) of a core model; None where it does not tell."""
    parameters = {key: each.string_value for key, each in config.parameters.items()}
    if "executor_options" in parameters:  # the embedded engine's template has it
        return _whole(_json(parameters["executor_options"] or "{}").get("max_batch_size", EMBEDDED))
    built = _json(_read(Path(parameters.get("gpt_model_path", "")) / "config.json"))
    if isinstance(built.get("build_config"), dict):  # an engine of TensorRT-LLM, on this machine
        return _whole(built["build_config"].get("max_batch_size"))
    # TensorRT-LLM's is what one Triton request may hold, and what repositories set to the engine's;
    # 1 is what other backends have to say there.
    return config.max_batch_size if config.max_batch_size > 1 else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


@dataclass(slots=True)
class LimitFinder:
    """Gives admission the engines' own limits, once they can be asked."""

    backend: Backend
    admission: Admission
    models: tuple[str, ...]
    is_done: bool = False

    async def find(self) -> None:
        """Before each query; only the first one finds something to do. An engine that is away is
        asked again, any other failure leaves the limits as they are."""
        if self.is_done or not self.admission.is_idle:
            return
        try:
            sizes = [await max_batch_size(self.backend, model) for model in self.models]
        except BackendUnavailable:
            return
        except CompllmError:
            self.is_done = True
            return
        # Queries that came meanwhile may be under way, with the limits that were there.
        if not self.is_done and self.admission.is_idle:
            self.is_done = True
            found = zip(self.models, sizes, strict=True)
            self.admission.set_limits({model: size for model, size in found if size})
