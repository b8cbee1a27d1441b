"""Every error this package raises on purpose.

CompllmError
├── ConfigError                a setting, a catalogue or a file is wrong
│   └── EngineError            an engine directory, a checkpoint or an adapter is wrong
├── QueryError                 the question itself is empty, too long or not text
├── PlanError                  a plan breaks a rule
│   ├── CycleError             its dependencies form a cycle
│   └── UnknownNodeError       it names a node that is not there
├── RouteError                 no expert, or vectors of the wrong kind
├── BackendError               the engine or the way to it failed
│   ├── BackendUnavailable     nobody answers there; trying again may help
│   └── BackendRejected        the request itself was refused; trying again will not help
├── ServerError                the embedded server cannot be started, found or stopped
└── DeadlineExceeded           the query's time is over
"""

from __future__ import annotations


class CompllmError(Exception):
    """Root of our errors. `query_id` and `node_id` say what it is about, where that is known."""

    def __init__(
        self, message: str, *, query_id: str | None = None, node_id: int | None = None
    ) -> None:
        super().__init__(message)
        self.query_id = query_id
        self.node_id = node_id


class ConfigError(CompllmError):
    """A setting, a catalogue or a file is wrong."""


class EngineError(ConfigError):
    """An engine directory, a checkpoint or an adapter is wrong."""


class QueryError(CompllmError):
    """The question itself is empty, too long or not text."""


class PlanError(CompllmError):
    """A plan breaks a rule."""


class CycleError(PlanError):
    """The dependencies form a cycle; `nodes` lists it."""

    def __init__(self, message: str, *, nodes: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.nodes = nodes


class UnknownNodeError(PlanError):
    """A node is named that is not in the graph."""


class RouteError(CompllmError):
    """No expert to route to, or vectors of the wrong kind."""


class BackendError(CompllmError):
    """The engine, or the way to it, failed."""


class BackendUnavailable(BackendError):
    """Nobody answers there; trying again may help."""


class BackendRejected(BackendError):
    """The request itself was refused; trying the same again will not help."""


class ServerError(CompllmError):
    """The embedded server cannot be started, found or stopped."""


class DeadlineExceeded(CompllmError):
    """The query's time is over."""


class ConfigWarning(UserWarning):
    """The settings can be worked with, and are probably not what was meant."""
