"""Keeps the garbage collector from stopping a query: a process calls it when its start is over.

What start-up made (modules, compiled models, the encoder: 56,000 objects) lives as long as the
process. Yet every full collection walks it with the interpreter stopped: 28 ms of processor time on
the machine of docs/LATENCY.md. A child's start (0.3 ms) or a decoding step (8 ms) would wait for
that.
"""

from __future__ import annotations

import gc


def freeze_startup_objects() -> None:
    """Collect once, and leave all objects that are alive now out of later collections.

    For the owner of a process, never for a library's call: what its caller made would be kept too.
    """
    gc.collect()
    gc.freeze()
