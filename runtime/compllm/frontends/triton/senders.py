"""The live requests of a Triton model, and the one thread that watches their senders.

Both models use it. The thread asks the senders whether their clients are gone, and publishes the
model's metrics. Each question costs 0.1 ms of two processes' time: requests are asked in turn.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from compllm.errors import Situation


class Sender(Protocol):
    """The way back to one client: Triton's response sender."""

    def send(self, tensors: dict[str, Any] | None, *, is_final: bool) -> None: ...
    def fail(self, message: str, situation: Situation) -> None: ...
    def is_cancelled(self) -> bool: ...


class TritonSender:
    """Triton's response sender as a Sender.

    triton: the module `triton_python_backend_utils`, which only a Python model can import.
    """

    def __init__(self, triton: Any, sender: Any) -> None:
        self._triton = triton
        self._sender = sender
        self._final = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL

    def send(self, tensors: dict[str, Any] | None, *, is_final: bool) -> None:
        flags = self._final if is_final else 0
        if tensors is None:
            self._sender.send(flags=flags)
            return
        arrays = [self._triton.Tensor(name, array) for name, array in tensors.items()]
        self._sender.send(self._triton.InferenceResponse(arrays), flags=flags)

    def fail(self, message: str, situation: Situation) -> None:
        code = getattr(self._triton.TritonError, situation.triton_code)
        error = self._triton.TritonError(message, code)
        self._sender.send(self._triton.InferenceResponse(error=error), flags=self._final)

    def is_cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())


@dataclass(slots=True, eq=False)
class LiveRequest:
    """A request without its final response. Safe to use from any thread.

    Triton crashes when a sender is used during or after its final response: a lock prevents the
    first, `is_over` the second.
    """

    sender: Sender
    is_cancelled: bool = False  # its end was asked for: no need to ask whether its client is gone
    is_over: bool = field(default=False, init=False)
    _sending: threading.Lock = field(default_factory=threading.Lock, init=False)

    def send(self, tensors: dict[str, Any] | None, *, is_final: bool) -> bool:
        """Send a response. False, and nothing is sent, after the final one."""
        with self._sending:
            if self.is_over:
                return False
            self.is_over = is_final
            self.sender.send(tensors, is_final=is_final)
            return True

    def fail(self, message: str, situation: Situation) -> bool:
        """Send an error as the final response. False, and nothing is sent, after that one."""
        with self._sending:
            if self.is_over:
                return False
            self.is_over = True
            self.sender.fail(message, situation)
            return True

    def is_gone(self) -> bool:
        """Whether the client has left, and its request still runs."""
        with self._sending:
            return not (self.is_over or self.is_cancelled) and self.sender.is_cancelled()


L = TypeVar("L", bound=LiveRequest)


@dataclass(frozen=True, slots=True)
class WatchPeriods:
    """How often the watching thread does what, in seconds."""

    check_s: float  # between two looks for clients that are gone
    publish_s: float  # between two publications of the metrics while a request is live
    check_all_s: float = math.inf  # within which all are asked; infinite: one request a look


class Senders(Generic[L]):
    """Holds the live requests and watches them until it is closed.

    on_gone: called on the watching thread with a request whose client is gone, once. publish:
    called on that thread with the number of live requests: at the start, every `publish_s` while
    there are any, once after the last one, and after `refresh`.
    """

    def __init__(
        self,
        periods: WatchPeriods,
        on_gone: Callable[[L], None],
        publish: Callable[[int], None],
    ) -> None:
        self._periods = periods
        self._on_gone = on_gone
        self._publish = publish
        self._live: dict[L, None] = {}  # the next to be asked is first
        self._changed = threading.Condition()
        self._is_closed = False
        self._is_stale = False  # the metrics have changed without a request
        self._watcher = threading.Thread(target=self._watch, name="compllm-watch")
        self._watcher.start()

    def add(self, live: L) -> None:
        with self._changed:
            self._live[live] = None
            if len(self._live) == 1:
                self._changed.notify()

    def remove(self, live: L) -> None:
        with self._changed:
            del self._live[live]
            if not self._live:
                self._changed.notify()  # the metrics report it at once

    def live(self) -> list[L]:
        with self._changed:
            return list(self._live)

    def refresh(self) -> None:
        """Publish the metrics soon, even while no request is live."""
        with self._changed:
            self._is_stale = True
            self._changed.notify()

    def close(self) -> None:
        """Watch no longer. Requests that are still live can be answered."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._watcher.join()

    def _watch(self) -> None:
        publish_at = 0.0
        num_live = 0
        while (asked := self._next_to_ask()) is not None:
            is_idle = not asked
            now = time.monotonic()
            if is_idle or now >= publish_at:
                num_live = self._num_to_publish()
                self._publish(num_live)
                publish_at = now + self._periods.publish_s
            if self._cancel_gone(asked):
                # Mostly a whole stream was closed: its other requests are asked at once.
                self._cancel_gone(self.live())
            self._wait(is_idle=is_idle and not num_live)

    def _next_to_ask(self) -> list[L] | None:
        """The requests whose turn it is, now last in the order. None: closed."""
        with self._changed:
            if self._is_closed:
                return None
            share = self._periods.check_s / self._periods.check_all_s
            count = max(1, math.ceil(len(self._live) * share))
            asked = list(itertools.islice(self._live, count))
            for live in asked:
                self._live[live] = self._live.pop(live)
            return asked

    def _cancel_gone(self, asked: list[L]) -> bool:
        gone = [live for live in asked if live.is_gone()]
        for live in gone:
            live.is_cancelled = True
            self._on_gone(live)
        return bool(gone)

    def _wait(self, *, is_idle: bool) -> None:
        """Until the next look; is_idle: until the first request, if none is live even now."""
        with self._changed:
            if not self._is_closed:
                forever = is_idle and not self._live and not self._is_stale
                self._changed.wait(None if forever else self._periods.check_s)

    def _num_to_publish(self) -> int:
        with self._changed:
            self._is_stale = False
            return len(self._live)
