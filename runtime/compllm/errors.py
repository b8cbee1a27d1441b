"""Every error this package raises on purpose, and the table of what clients see of each.

CompllmError
├── ConfigError                a setting, a catalogue or a file is wrong
│   └── ArtefactError          (also an EngineError) an engine directory, a checkpoint or an adapter
├── EngineError                the embedded engine, or a file of it
│   ├── RequestInvalid         the request has a value that the engine cannot use
│   ├── AdapterUnknown         the engine does not hold the request's adapter
│   ├── EngineOverloaded       no room now; trying again may help
│   └── EngineClosed           it is shut down or has failed
├── QueryError                 the question itself is empty, too long or not text
├── PlanError                  a plan breaks a rule
│   ├── CycleError             its dependencies form a cycle
│   └── UnknownNodeError       it names a node that is not there
├── RouteError                 no expert, or vectors of the wrong kind
├── BackendError               the engine or the way to it failed
│   ├── BackendUnavailable     no server answers there; trying again may help
│   └── BackendRejected        the request itself was refused; trying again will not help
├── ServerError                the embedded server cannot be started, found or stopped
└── DeadlineExceeded           the query's time is over
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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


class EngineError(CompllmError):
    """The embedded engine refuses something, or a file of it is wrong."""


class ArtefactError(EngineError, ConfigError):
    """An engine directory, a checkpoint or an adapter is wrong."""


class RequestInvalid(EngineError):
    """The request has a value that the engine cannot use; the same again will not help."""


class AdapterUnknown(EngineError):
    """The engine does not hold the adapter that the request names."""


class EngineOverloaded(EngineError):
    """The engine has no room for the request now; trying again may help."""


class EngineClosed(EngineError):
    """The engine is shut down, or has failed and takes no more requests."""


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
    """No server answers there; trying again may help."""


class BackendRejected(BackendError):
    """The request itself was refused; trying the same again will not help."""


class ServerError(CompllmError):
    """The embedded server cannot be started, found or stopped."""


class DeadlineExceeded(CompllmError):
    """The query's time is over."""


class ConfigWarning(UserWarning):
    """The settings can be worked with, and are probably not what was meant."""


TritonCode = Literal["INVALID_ARG", "NOT_FOUND", "UNAVAILABLE", "CANCELLED", "INTERNAL"]


@dataclass(frozen=True, slots=True)
class Situation:
    """What a client sees of an error, on each way to the product.

    name: gRPC's status, also at the head of a log line. triton_code: Triton's own code, which its
    front ends make a status of; Triton has none for a missed deadline. http_status: of a front end
    that can set it; Triton's answers 400 to every error of a model. exit_status: of a command.
    """

    name: str
    triton_code: TritonCode
    http_status: int
    exit_status: int


INVALID = Situation("INVALID_ARGUMENT", "INVALID_ARG", 400, 2)
REJECTED = Situation("INVALID_ARGUMENT", "INVALID_ARG", 400, 1)
NOT_FOUND = Situation("NOT_FOUND", "NOT_FOUND", 404, 1)
UNAVAILABLE = Situation("UNAVAILABLE", "UNAVAILABLE", 503, 1)
TIMED_OUT = Situation("DEADLINE_EXCEEDED", "UNAVAILABLE", 504, 1)
CANCELLED = Situation("CANCELLED", "CANCELLED", 499, 130)
INTERNAL = Situation("INTERNAL", "INTERNAL", 500, 1)

# The first class that an error is an instance of counts.
SITUATIONS: tuple[tuple[type[BaseException], Situation], ...] = (
    (QueryError, INVALID),
    (PlanError, INVALID),
    (RequestInvalid, INVALID),
    (ConfigError, INVALID),
    (AdapterUnknown, NOT_FOUND),
    (EngineOverloaded, UNAVAILABLE),
    (EngineClosed, UNAVAILABLE),
    (BackendRejected, REJECTED),
    (BackendUnavailable, UNAVAILABLE),
    (DeadlineExceeded, TIMED_OUT),
    (CompllmError, INTERNAL),
)


def situation_of(error: BaseException) -> Situation:
    """The situation of any error; one that is not ours is INTERNAL."""
    for kind, situation in SITUATIONS:
        if isinstance(error, kind):
            return situation
    return INTERNAL
