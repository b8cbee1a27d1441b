"""OpenVINO cores that are never let go, so that signals can be handled after their users' end.

With AVX-512, OpenVINO's CPU plugin gives the thread that loads it a larger signal stack, and frees
that stack with itself, in whatever thread drops the last reference to the core. The first thread is
left with a stack that is gone: the next signal that Python handles there (Ctrl-C, SIGTERM) kills
the process with a segmentation fault. Used by `embed.py` and the engine's `runner.py`.
"""

from __future__ import annotations

from typing import Any

_kept: list[Any] = []  # for the life of the process: a plugin each, but no model


def new_core() -> Any:
    """An `openvino.Core` of one's own."""
    import openvino

    core = openvino.Core()
    _kept.append(core)
    return core
