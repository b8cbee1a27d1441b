"""errors.py: each error has one situation, and each situation a row that clients can rely on."""

from __future__ import annotations

import inspect

import grpc
import pytest

from compllm import errors
from compllm.cli.console import explain
from compllm.errors import SITUATIONS, CompllmError, Situation, situation_of

_ROWS = {
    "ArtefactError": ("INVALID_ARGUMENT", "INVALID_ARG", 400, 2),
    "ConfigError": ("INVALID_ARGUMENT", "INVALID_ARG", 400, 2),
    "RequestInvalid": ("INVALID_ARGUMENT", "INVALID_ARG", 400, 2),
    "QueryError": ("INVALID_ARGUMENT", "INVALID_ARG", 400, 2),
    "PlanError": ("INVALID_ARGUMENT", "INVALID_ARG", 400, 2),
    "CycleError": ("INVALID_ARGUMENT", "INVALID_ARG", 400, 2),
    "UnknownNodeError": ("INVALID_ARGUMENT", "INVALID_ARG", 400, 2),
    "BackendRejected": ("INVALID_ARGUMENT", "INVALID_ARG", 400, 1),
    "AdapterUnknown": ("NOT_FOUND", "NOT_FOUND", 404, 1),
    "EngineOverloaded": ("UNAVAILABLE", "UNAVAILABLE", 503, 1),
    "EngineClosed": ("UNAVAILABLE", "UNAVAILABLE", 503, 1),
    "BackendUnavailable": ("UNAVAILABLE", "UNAVAILABLE", 503, 1),
    "DeadlineExceeded": ("DEADLINE_EXCEEDED", "UNAVAILABLE", 504, 1),
    "EngineError": ("INTERNAL", "INTERNAL", 500, 1),
    "BackendError": ("INTERNAL", "INTERNAL", 500, 1),
    "RouteError": ("INTERNAL", "INTERNAL", 500, 1),
    "ServerError": ("INTERNAL", "INTERNAL", 500, 1),
    "CompllmError": ("INTERNAL", "INTERNAL", 500, 1),
}


def _ours() -> list[type[CompllmError]]:
    classes = (each for _, each in inspect.getmembers(errors, inspect.isclass))
    return [each for each in classes if issubclass(each, CompllmError)]


def test_every_error_has_a_row() -> None:
    assert {each.__name__ for each in _ours()} == set(_ROWS)


@pytest.mark.parametrize("kind", _ours())
def test_an_error_has_the_situation_of_its_row(kind: type[CompllmError]) -> None:
    assert situation_of(kind("x")) == Situation(*_ROWS[kind.__name__])


@pytest.mark.parametrize("kind", _ours())
def test_a_command_ends_with_the_status_of_its_row(kind: type[CompllmError]) -> None:
    assert explain(kind("the reason")) == ("the reason", _ROWS[kind.__name__][3])


def test_an_error_that_is_not_ours_is_internal() -> None:
    assert situation_of(ZeroDivisionError()).name == "INTERNAL"


def test_a_row_of_a_class_comes_before_the_rows_of_its_parents() -> None:
    kinds = [kind for kind, _ in SITUATIONS]
    for place, kind in enumerate(kinds):
        assert not any(issubclass(later, kind) for later in kinds[place + 1 :])


def test_the_names_are_the_statuses_of_grpc() -> None:
    assert {name for name, *_ in _ROWS.values()} <= {each.name for each in grpc.StatusCode}
