"""What OpenVINO leaves behind in a process that goes on without it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, os, signal, threading
from compllm.embedded.cores import new_core

core = new_core()
core.get_property("CPU", "FULL_DEVICE_NAME")
held = [core]
del core
thread = threading.Thread(target=held.clear)  # the last reference goes in another thread
thread.start()
thread.join()
gc.collect()
seen = []
signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
os.kill(os.getpid(), signal.SIGTERM)
print(seen)
"""


def test_a_signal_is_handled_after_the_last_core_is_gone() -> None:
    """With AVX-512 the signal stack went with the plugin: SIGTERM became a segmentation fault."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, "[1]"), run.stderr
