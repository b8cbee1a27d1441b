"""Masks of guides that clients wrote, computed by a thread of their own.

One such mask may take a second, and no step of the engine waits for it: it is computed while the
step runs. A row whose mask is late keeps its logits and is sampled when the mask is there; the
others go on. The plan's own guide is quick and is computed in place, in `sampling.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from compllm.embedded.sequence import Sequence

Rows = tuple[list[Sequence], NDArray[np.float32]]  # sequences, and their logits [n, vocab]


class Masks:
    """The thread, and what waits for it. `on_ready` is called on it after each mask."""

    def __init__(self, on_ready: Callable[[], None]) -> None:
        self._on_ready = on_ready
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compllm-masks")

    def compute_ahead(self, sequence: Sequence) -> None:
        """Have the next token's mask computed, where that may be slow."""
        guide = sequence.sampler.guide
        if guide is not None and not guide.is_own:
            sequence.masking = self._thread.submit(guide.prepare)
            sequence.masking.add_done_callback(lambda _: self._on_ready())

    def keep_late(self, sampled: list[Sequence], logits: NDArray[np.float32]) -> Rows:
        """Those whose mask is there. The others keep their rows until `ready_rows`."""
        is_ready = [each.is_mask_ready for each in sampled]
        if all(is_ready):
            return sampled, logits
        for place, sequence in enumerate(sampled):
            if not is_ready[place]:
                sequence.late_logits = logits[place].copy()
        return list(compress(sampled, is_ready)), logits[is_ready]

    def ready_rows(self, running: list[Sequence]) -> Rows | None:
        """Rows that were kept and can be sampled now; None where there are none."""
        found = [
            (each, each.late_logits)
            for each in running
            if each.late_logits is not None and each.is_mask_ready
        ]
        if not found:
            return None
        for sequence, _ in found:
            sequence.late_logits = None
        return [sequence for sequence, _ in found], np.stack([row for _, row in found])

    def close(self) -> None:
        """Compute no more masks; one that is under way is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)
