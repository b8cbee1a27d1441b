"""Adapters that clients send with their requests: which of them the engine takes.

Any client can send weights under any id, and an id names one content for all clients. So weights
under an id that the engine knows must be those that it knows, and their size is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compllm.errors import RequestInvalid
from compllm.formats.adapters import Adapter
from compllm.formats.lora_tensors import from_tensors
from compllm.formats.shape import BaseShape
from compllm.frontends.triton.core_tensors import CoreRequest

AdapterTensors = tuple[NDArray[np.float16], NDArray[np.int32]]
_MAX_REMEMBERED = 4096  # ids that clients brought


class AdapterHolder(Protocol):
    """What is used here of `executor.Executor`."""

    @property
    def task_ids(self) -> tuple[int, ...]: ...
    def load_adapter(self, task_id: int, adapter: Adapter) -> None: ...


class SentAdapters:
    """Loads what clients send. One thread at a time, but for `check_size`.

    is_lora_cache: weights for an id that is there are not looked at, as in TensorRT-LLM. max_rank:
    of an adapter that a client sends. built_in: the tensors of an adapter of the engine's directory
    by id, None for another id.
    """

    def __init__(
        self,
        engine: AdapterHolder,
        base: BaseShape,
        *,
        is_lora_cache: bool,
        max_rank: int,
        built_in: Callable[[int], AdapterTensors | None],
    ) -> None:
        self._engine = engine
        self._base = base
        self._is_lora_cache = is_lora_cache
        self._max_rank = max_rank
        self._built_in = built_in
        shapes = base.module_shapes().values()
        self._max_rows = base.num_layers * len(shapes)
        self._max_width = max_rank * max(num_out + num_in for num_out, num_in in shapes)
        self._hashes: OrderedDict[int, str] = OrderedDict()  # of the content, by id

    def check_size(self, request: CoreRequest) -> None:
        """Raises RequestInvalid for weights larger than any adapter that is taken."""
        weights, config = request.lora_weights, request.lora_config
        if weights is None or config is None:
            return
        num_rows, width = weights.shape
        rank = int(config[:, 2].max()) if config.ndim == 2 and config.shape[1:] == (4,) else 0
        if num_rows > self._max_rows or width > self._max_width or rank > self._max_rank:
            raise RequestInvalid(
                f"lora_weights have {num_rows} rows of {width} values and rank {rank}: this server "
                f"takes at most {self._max_rows} rows of {self._max_width} values and rank "
                f"{self._max_rank} (executor option max_lora_rank)"
            )

    def load(self, request: CoreRequest) -> None:
        """Load the request's adapter, where it brings one that is not there.

        Raises RequestInvalid where the id has another content, ArtefactError where the weights do
        not fit the base, EngineOverloaded where every slot is in use.
        """
        weights, config, task_id = (
            request.lora_weights,
            request.lora_config,
            request.engine.task_id,
        )
        if weights is None or config is None or task_id is None:
            return
        is_there = task_id in self._engine.task_ids
        if is_there and self._is_lora_cache:
            return  # TensorRT-LLM never compares contents: the first adapter of an id stays
        adapter = from_tensors(f"task-{task_id}", weights, config, self._base)
        known = self._known_hash(task_id)
        if known not in (None, adapter.sha256):
            raise RequestInvalid(
                f"lora_weights under lora_task_id {task_id} differ from the adapter that has this "
                "id: give other weights another id"
            )
        if is_there and known is not None:
            return  # sent again: the requests that run with it go on
        self._engine.load_adapter(task_id, adapter)
        self._hashes[task_id] = adapter.sha256
        while len(self._hashes) > _MAX_REMEMBERED:
            self._hashes.popitem(last=False)

    def _known_hash(self, task_id: int) -> str | None:
        if task_id not in self._hashes:
            tensors = self._built_in(task_id)
            if tensors is None:
                return None
            weights, config = tensors
            self._hashes[task_id] = from_tensors("built-in", weights, config, self._base).sha256
        self._hashes.move_to_end(task_id)
        return self._hashes[task_id]
