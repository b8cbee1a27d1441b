"""The engine gives way to the runtime: which niceness the kernel gets, and of which process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compllm.errors import ConfigError
from compllm.niceness import give_way, session_gives_way

AUTOGROUPS = Path("/proc/sys/kernel/sched_autogroup_enabled")

# In a process of its own: only root can take a nice value back.
TELL_NICENESS = """
import os, sys, threading
from compllm.niceness import give_way
os.setpriority(os.PRIO_PROCESS, 0, int(sys.argv[1]))
give_way(int(sys.argv[2]))
def tell():
    print(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
thread = threading.Thread(target=tell)
thread.start()
thread.join()
"""


@pytest.mark.parametrize(
    ("before", "asked", "after"),
    [(0, 5, 5), (0, 0, 0), (7, 5, 7)],
    ids=["more", "off", "never less"],
)
def test_threads_started_later_inherit_it(before: int, asked: int, after: int) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    values = (str(min(own + each, 19)) for each in (before, asked))
    said = subprocess.run(
        [sys.executable, "-c", TELL_NICENESS, *values],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(said.stdout) == min(own + after, 19)


@pytest.mark.skipif(not AUTOGROUPS.exists(), reason="a kernel without autogroups")
def test_a_session_gives_way_to_other_sessions() -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        session_gives_way(process.pid, 5)
        autogroup = Path(f"/proc/{process.pid}/autogroup").read_text()
        process.kill()
    # Empty: a control group of its own, in which sessions count for nothing.
    assert not autogroup or autogroup.split()[-1] == "5"


def test_a_process_that_is_gone_is_no_error() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        session_gives_way(process.pid, 5)
    assert process.returncode == 0


@pytest.mark.parametrize("niceness", [-1, 20, "5", 2.5])
def test_an_impossible_value_is_named(niceness: int) -> None:
    with pytest.raises(ConfigError, match=str(niceness)):
        give_way(niceness)
    with pytest.raises(ConfigError, match=str(niceness)):
        session_gives_way(os.getpid(), niceness)
