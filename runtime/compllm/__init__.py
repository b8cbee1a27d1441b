"""Comp-LLM: one small base model and LoRA experts answer a composite question together.

The names below are imported when they are first used, so that `import compllm` costs nothing and
needs neither a server nor an engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compllm.catalogue import Catalogue, load_catalogue
    from compllm.config import Config, load_config
    from compllm.errors import (
        AdapterUnknown,
        ArtefactError,
        BackendError,
        BackendRejected,
        BackendUnavailable,
        CompllmError,
        ConfigError,
        ConfigWarning,
        CycleError,
        DeadlineExceeded,
        EngineClosed,
        EngineError,
        EngineOverloaded,
        PlanError,
        QueryError,
        RequestInvalid,
        RouteError,
        ServerError,
        UnknownNodeError,
    )
    from compllm.graph import QueryGraph
    from compllm.pipeline import CompLLM, ask_sync
    from compllm.plan import format_plan, parse_plan
    from compllm.types import (
        Answer,
        AnswerDelta,
        AnswerFinished,
        Bound,
        Event,
        Expert,
        NodeFinished,
        NodeResult,
        NodeStarted,
        Plan,
        PlanFinished,
        Query,
        QueryUsage,
        Route,
        SamplingParams,
        SubQuery,
        SubQueryPlanned,
        Timings,
        Usage,
    )

_MODULES = {
    "catalogue": ("Catalogue", "load_catalogue"),
    "config": ("Config", "load_config"),
    "errors": (
        "AdapterUnknown",
        "ArtefactError",
        "BackendError",
        "BackendRejected",
        "BackendUnavailable",
        "CompllmError",
        "ConfigError",
        "ConfigWarning",
        "CycleError",
        "DeadlineExceeded",
        "EngineClosed",
        "EngineError",
        "EngineOverloaded",
        "PlanError",
        "QueryError",
        "RequestInvalid",
        "RouteError",
        "ServerError",
        "UnknownNodeError",
    ),
    "graph": ("QueryGraph",),
    "pipeline": ("CompLLM", "ask_sync"),
    "plan": ("format_plan", "parse_plan"),
    "types": (
        "Answer",
        "AnswerDelta",
        "AnswerFinished",
        "Bound",
        "Event",
        "Expert",
        "NodeFinished",
        "NodeResult",
        "NodeStarted",
        "Plan",
        "PlanFinished",
        "Query",
        "QueryUsage",
        "Route",
        "SamplingParams",
        "SubQuery",
        "SubQueryPlanned",
        "Timings",
        "Usage",
    ),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__version__ = "0.1.0"

__all__ = [
    "AdapterUnknown",
    "Answer",
    "AnswerDelta",
    "AnswerFinished",
    "ArtefactError",
    "BackendError",
    "BackendRejected",
    "BackendUnavailable",
    "Bound",
    "Catalogue",
    "CompLLM",
    "CompllmError",
    "Config",
    "ConfigError",
    "ConfigWarning",
    "CycleError",
    "DeadlineExceeded",
    "EngineClosed",
    "EngineError",
    "EngineOverloaded",
    "Event",
    "Expert",
    "NodeFinished",
    "NodeResult",
    "NodeStarted",
    "Plan",
    "PlanError",
    "PlanFinished",
    "Query",
    "QueryError",
    "QueryGraph",
    "QueryUsage",
    "RequestInvalid",
    "Route",
    "RouteError",
    "SamplingParams",
    "ServerError",
    "SubQuery",
    "SubQueryPlanned",
    "Timings",
    "UnknownNodeError",
    "Usage",
    "ask_sync",
    "format_plan",
    "load_catalogue",
    "load_config",
    "parse_plan",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'compllm' has no attribute {name!r}")
    return getattr(import_module(f"compllm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
