"""Scenario files: TOML that says which load `compllm simulate` forecasts or `compllm replay` runs.

Each command has a class of keys below `Scenario`; one reader fills either. A path in a file is
relative to the file's folder. An error names the file and the key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from compllm.config import checked_value, read_toml
from compllm.errors import ConfigError
from compllm.lab.replay.graphs import ReplayGraph, read_graphs
from compllm.lab.replay.workload import MAX_TOKENS, Overhead, TokenLengths
from compllm.plan import PlanLimits


def key(
    says: str,
    default: Any = MISSING,
    *,
    between: tuple[float, float] | None = None,
    example: Any = None,
) -> Any:
    """A key of a scenario file. example: for `example_text`, where the default is none."""
    metadata = {"says": says, "example": example}
    if between is not None:
        metadata["range"] = between
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The keys that both commands know."""

    graphs: Path = key(
        "JSON lines of {'id', 'question', 'steps', 'parents'}.", example="graphs.jsonl"
    )
    limit: int | None = key(
        "The first N graphs alone; default: all.", None, between=(1, 2**31), example=100
    )
    tokens_per_node: int = key("Tokens of each node's response.", 32, between=(1, MAX_TOKENS))
    tokens_sigma: float = key(
        "Above 0: lognormal lengths with that mean; this is the deviation of the logarithm.",
        0.0,
        between=(0, 3),
    )
    answer_tokens: int = key("Tokens of a composed answer.", 64, between=(1, MAX_TOKENS))
    overhead: Overhead = key(
        "Whether plan and answer are written too: plan+compose, none.", "plan+compose"
    )
    seed: int = key("Of the arrivals and of the drawn lengths.", 0, between=(0, 2**31 - 1))

    @property
    def lengths(self) -> TokenLengths:
        return TokenLengths(self.tokens_per_node, self.tokens_sigma, self.seed)

    def problem(self) -> str | None:
        """Why these keys do not go together; None where they do."""
        return None

    def read_graphs(self, limits: PlanLimits) -> list[ReplayGraph]:
        """Raises ConfigError that names the bad lines."""
        return read_graphs(self.graphs, limits, self.limit)


S = TypeVar("S", bound=Scenario)


def read_scenario(path: Path, kind: type[S], overrides: Mapping[str, object] | None = None) -> S:
    """The scenario of a file. overrides: in the place of its keys; None leaves the file's value.

    Raises ConfigError.
    """
    known = {each.name: each for each in fields(kind)}
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in read_toml(path).items():
        if name not in known:
            raise ConfigError(f"{path}: unknown key {name!r}; the keys are {', '.join(known)}")
        values[name] = _converted(value, hints[name], known[name], path)
    values |= {name: value for name, value in (overrides or {}).items() if value is not None}
    missing = [
        name for name, each in known.items() if each.default is MISSING and name not in values
    ]
    if missing:
        raise ConfigError(f"{path}: no {', no '.join(missing)}; the keys are {', '.join(known)}")
    scenario = kind(**values)
    if (problem := scenario.problem()) is not None:
        raise ConfigError(f"{path}: {problem}")
    return scenario


def example_text(kind: type[Scenario]) -> str:
    """A scenario file with every key; those without a default value are commented out."""
    parts = []
    for each in fields(kind):
        is_optional = each.default is None
        value = each.metadata["example"] if is_optional or each.default is MISSING else each.default
        line = f"{each.name} = {json.dumps(value)}"
        parts.append(f"# {each.metadata['says']}\n{'# ' if is_optional else ''}{line}\n")
    return "\n".join(parts)


def _converted(value: object, kind: Any, each: Field[Any], path: Path) -> object:
    if get_origin(kind) in (Union, UnionType):  # a Literal makes a Union
        kind = next(one for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is tuple:
        if not isinstance(value, list) or not value:
            raise ConfigError(f"{each.name} = {value!r} in {path}: expected a list of at least one")
        return tuple(_converted(item, get_args(kind)[0], each, path) for item in value)
    is_path = kind is Path
    checked = checked_value(each.name, value, f"in {path}", each, str if is_path else kind)
    return path.parent / str(checked) if is_path else checked
