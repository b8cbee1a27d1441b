"""What other threads ask of the engine's own thread: new sequences, cancels, jobs between steps.

`executor.py` puts orders in from any thread; its engine thread takes them before each step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from compllm.embedded.sequence import Sequence
from compllm.errors import EngineClosed

Job = tuple[Callable[[], Any], Future[Any]]


@dataclass(slots=True)
class Taken:
    """Orders that were put in since the last time."""

    sequences: list[Sequence] = field(default_factory=list)
    cancels: dict[int, int] = field(default_factory=dict)  # handle: steps taken when it was asked
    jobs: list[Job] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.sequences or self.cancels or self.jobs)


class Orders:
    """Thread-safe. After `close` nothing is put in any more: EngineClosed says why."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._taken = Taken()
        self._refusal: str | None = None
        self._next_handle = 1

    def new_handle(self) -> int:
        """A number for a request."""
        with self._wake:
            self._next_handle += 1
            return self._next_handle - 1

    @property
    def num_new(self) -> int:
        """Sequences that the engine has not taken yet."""
        return len(self._taken.sequences)

    def check_open(self) -> None:
        """Raises EngineClosed after `close`."""
        if self._refusal is not None:
            raise EngineClosed(self._refusal)

    def add(self, sequence: Sequence) -> None:
        """Raises EngineClosed."""
        with self._wake:
            self.check_open()
            self._taken.sequences.append(sequence)
            self._wake.notify()

    def cancel(self, handle: int, num_steps: int) -> None:
        """End this request; the number of steps says when that was asked."""
        with self._wake:
            self._taken.cancels.setdefault(handle, num_steps)
            self._wake.notify()

    def call(self, job: Callable[[], Any]) -> None:
        """Have the job done between two steps, and wait for it. Raises what it raises."""
        future: Future[Any] = Future()
        with self._wake:
            self.check_open()
            self._taken.jobs.append((job, future))
            self._wake.notify()
        future.result()

    def notify(self) -> None:
        """Let `take` look again whether there is anything to do."""
        with self._wake:
            self._wake.notify()

    def close(self, reason: str) -> None:
        """Take nothing more. The first reason stays."""
        with self._wake:
            self._refusal = self._refusal or reason
            self._wake.notify()

    def take(self, can_go_on: Callable[[], bool], on_idle: Callable[[], None]) -> Taken | None:
        """Wait until there are orders or the engine can go on by itself; None after `close`.

        on_idle: is called after each wait.
        """
        with self._wake:
            while self._refusal is None and not self._taken and not can_go_on():
                self._wake.wait()
                on_idle()
            return None if self._refusal is not None else self._swap()

    def drain(self) -> Taken:
        """What is left, after `close`."""
        with self._wake:
            return self._swap()

    def _swap(self) -> Taken:
        taken, self._taken = self._taken, Taken()
        return taken
