"""What an engine says of its own limits: how many requests it batches.

Asked of the model's configuration before a process's first query, for `admission.py`: requests
beyond what the engine batches would wait in its own queue, first come, first served, where our
order cannot reach them.
"""

from __future__ import annotations

from dataclasses import dataclass

from compllm.backend import Backend, max_batch_size
from compllm.errors import BackendUnavailable, CompllmError
from compllm.scheduling.admission import Admission

UNTOLD = 64  # requests in flight at an engine that does not say how many it batches


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
