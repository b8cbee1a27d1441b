"""How far the embedded engine gives way to the runtime on the same cores: nice values.

The engine keeps every core busy, so a runtime beside it that wakes for a millisecond (a parent's
response is there, its child can start) found no core: the kernel let it wait 5 to 50 ms every few
hundred children (docs/LATENCY.md). With a higher nice value the engine's threads are the ones that
wait, for that millisecond; alone on the cores they lose nothing. The Triton model calls `give_way`
for its own process, `triton_process.py` calls `session_gives_way` for the server that it started.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from compllm.errors import ConfigError

NICENESS = 5  # 1 to 3 were tried, too: they leave some of the waits


def give_way(niceness: int) -> None:
    """Of this thread and of all that it starts from now on. One that was nicer already stays so.
    At 5 they have a third of the share of threads at 0 in the same session or control group. Raises
    ConfigError."""
    _check(niceness)
    with contextlib.suppress(OSError):  # a kernel that forbids it: slower starts, nothing worse
        now = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, max(now, niceness))


def session_gives_way(pid: int, niceness: int) -> None:
    """Of all of a process's session against other sessions: Linux shares the cores among sessions
    first (sched(7), autogroups), so that a process's own nice value says nothing to a client which
    was started elsewhere. Nothing happens where there are no autogroups. Raises ConfigError."""
    _check(niceness)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness))


def _check(niceness: int) -> None:
    if not isinstance(niceness, int) or not 0 <= niceness <= 19:
        raise ConfigError(f"niceness is {niceness!r}, allowed are 0 to 19")
