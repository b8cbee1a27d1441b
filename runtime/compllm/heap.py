"""Keeps the garbage collector from stopping a query: called by a process once its start is over.

What start-up made (modules, compiled models, the encoder: 56,000 objects) lives as long as the
process, yet every full collection walks it with the interpreter stopped, for 28 ms of processor
time on the machine of docs/LATENCY.md. A child's start, 0.3 ms, or a decoding step, 8 ms, would
wait for that.
"""

from __future__ import annotations

import gc


def settle() -> None:
    """Collect once, and leave out of later collections all that is alive now. For a process's
    owner, never for a library's call: what its caller made would be kept, too."""
    gc.collect()
    gc.freeze()
