"""One frozen tree of settings: defaults < TOML file < `COMPLLM_*` environment < explicit overrides.

Resolved once at start by `load_config`, then passed down by argument. A key is `section.name` in
overrides and TOML, `COMPLLM_SECTION_NAME` in the environment. Unknown keys and bad values are
ConfigErrors that name where the value came from.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from compllm.errors import ConfigError
from compllm.plan import PlanLimits
from compllm.types import ComposePolicy

# Variables of the same prefix that are not settings of this tree.
_OTHER_VARIABLES = {
    "COMPLLM_HOME",
    "COMPLLM_CONFIG",
    "COMPLLM_DEBUG",
    "COMPLLM_ISA",
    "COMPLLM_OPENVINO_CMAKE",
    "COMPLLM_OPENVINO_DIR",
}


def _number(default: float, low: float, high: float) -> Any:
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where the engine is."""

    # host:port of Triton's gRPC, or http://host:port of an OpenAI-compatible server; empty: the
    # running embedded server's, else 127.0.0.1:8001
    url: str = ""
    model: str = ""  # the base's name at an OpenAI-compatible server; empty: its only model
    api_key_env: str = ""  # the environment variable that holds such a server's key
    tokenizer: str = ""  # directory of its tokenizer.json; empty: the one that the server names
    # What to send where the engine's LoRA cache lacks it: an engine's folder, or one that
    # hf_lora_convert.py filled. For llmapi and OpenAI-compatible servers: where the server has the
    # PEFT folders, by name.
    # Empty: what the server names.
    adapters_dir: str = ""
    ready_timeout_s: float = _number(10.0, 0.1, 3600)  # to find the server ready when connecting
    # Where `compllm up` opens Triton's HTTP, on loopback; 0: it stays closed. Some hostile requests
    # crash its parser.
    http_port: int = _number(0, 0, 65_535)


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """What holds before anything is sent."""

    max_query_chars: int = _number(8000, 1, 1_000_000)
    max_nodes: int = _number(64, 1, 10_000)  # of any plan, given or generated
    max_depth: int = _number(32, 1, 10_000)
    max_line_chars: int = _number(1000, 10, 100_000)
    max_node_tokens: int = _number(96, 1, 32_768)  # new tokens of one sub-query's response
    max_answer_tokens: int = _number(192, 1, 32_768)
    # Requests of this process at one engine; 0: as many as the engine batches, 64 where it does
    # not report that.
    max_in_flight: int = _number(0, 0, 4096)
    max_waiting: int = _number(10_000, 1, 10_000_000)  # nodes that wait for admission
    # Queries of this process that run at once; 0: a quarter of what an engine batches, at least 8.
    # The others wait, and are refused where their turn would come after max_wait_s or too late for
    # their deadline; 0: in a server 1 s, in your own process until the deadline.
    max_running: int = _number(0, 0, 100_000)
    max_wait_s: float = _number(0.0, 0, 86_400)

    @property
    def plan(self) -> PlanLimits:
        return PlanLimits(self.max_nodes, self.max_depth, self.max_line_chars)


@dataclass(frozen=True, slots=True)
class TimeoutsConfig:
    """Seconds. The query's deadline ends everything; the others leave time for what follows."""

    query_s: float = _number(120.0, 0.01, 86_400)  # where a query brings no deadline of its own
    plan_s: float = _number(
        30.0, 0.01, 86_400
    )  # the generator, before the one-node plan replaces it
    node_s: float = _number(60.0, 0.01, 86_400)  # one attempt at one node
    retry_wait_s: float = _number(
        0.1, 0, 60
    )  # before a request goes again to a server that was away


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """The sub-query generator."""

    # Adapter name of the catalogue; empty: the one that the catalogue names for this; "base": the
    # base with a few-shot prompt.
    adapter: str = ""
    max_nodes: int = _number(5, 1, 16)  # of a generated plan: bounds the guide
    max_tokens: int = _number(160, 8, 4096)
    is_guided: bool = True  # off only for an engine that cannot guide
    # Other plans that are drawn where it is not sure of the first; the likeliest is taken. 0: none.
    num_draws: int = _number(6, 0, 64)


@dataclass(frozen=True, slots=True)
class ComposeConfig:
    """How the leaves' responses become the answer."""

    policy: ComposePolicy = "auto"
    adapter: str = ""  # of the aggregator, as in GeneratorConfig


@dataclass(frozen=True, slots=True)
class SharingConfig:
    """Identical sub-queries of live queries: one request for all, and a cache of responses."""

    is_on: bool = True  # only what is drawn greedily, so that it makes no difference to the text
    cache_size: int = _number(0, 0, 1_000_000)  # responses kept; 0: none
    cache_ttl_s: float = _number(300.0, 0.001, 31_536_000)


@dataclass(frozen=True, slots=True)
class GateConfig:
    """Whether a question that needs no plan goes straight to one expert; `gate.py` decides it."""

    mode: Literal["off", "on", "auto"] = "auto"
    risk: float = _number(0.03, 0, 1)  # of `auto`: wrong ones among those sent straight on, at most
    file: str = ""  # of train_gate.py; empty: the shipped one
    # A plan of which no expert owns a part becomes the whole question to the base.
    whole_to_base: bool = True


@dataclass(frozen=True, slots=True)
class AnswerConfig:
    """When an answer is not given; `confidence.py` says how sure it is."""

    # Below this probability of being right an answer is low in confidence. -1: the values that the
    # catalogue's calibration chose, one for experts and one for the base.
    min_confidence: float = _number(-1.0, -1.0, 1.0)
    # What becomes "I do not know" then: what an expert had a part in ("experts"), everything
    # ("always"), nothing ("never"). The rest is given and marked. The base alone is marked by
    # default: the path is never to know less than its base.
    abstain: Literal["experts", "always", "never"] = "experts"
    cut_loops: bool = True  # text that repeats itself ends after its first copy
    keep_all: bool = True  # a short response that the aggregator left out is put behind its text


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be set."""

    server: ServerConfig = field(default_factory=ServerConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    timeouts: TimeoutsConfig = field(default_factory=TimeoutsConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    compose: ComposeConfig = field(default_factory=ComposeConfig)
    sharing: SharingConfig = field(default_factory=SharingConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)
    # Path of an experts.toml; empty: the one shipped with the package. A file of settings may hold
    # the catalogue itself, as the table `catalogue`: then this is the file's own path.
    catalogue: str = ""


def load_config(
    path: str | Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    served: Mapping[str, object] | None = None,
) -> Config:
    """Resolve the tree. `path` (else `$COMPLLM_CONFIG`) is a TOML file; `overrides` maps
    `section.name` to a value, None values are left out, so that unset command-line options can be
    passed as they are. `served`: of a running server, in the place of the defaults; what is not
    known here is left out, since that server may be of another version.

    Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    if path is None and environ.get("COMPLLM_CONFIG"):
        path = Path(environ["COMPLLM_CONFIG"])
    values: dict[str, tuple[object, str]] = {  # key -> value and its origin
        key: (value, "of the running server")
        for key, value in (served or {}).items()
        if key in _fields()
    }
    if path is not None:
        table = read_toml(Path(path))
        if isinstance(table.get("catalogue"), dict):
            table["catalogue"] = str(path)
        values |= {key: (value, f"in {path}") for key, value in _flat(table).items()}
    values |= _from_environment(environ)
    for key, value in (overrides or {}).items():
        if value is not None:
            values[key] = (value, "given explicitly")
    return _build(values)


def flat_values(config: Config) -> dict[str, object]:
    """Every setting by its key, as `load_config` takes them."""
    return _flat(dataclasses.asdict(config))


def variable_of(key: str) -> str:
    """The environment variable of a setting."""
    return "COMPLLM_" + key.replace(".", "_").upper()


def read_toml(path: Path) -> dict[str, Any]:
    """The file as a dict. Raises ConfigError that names the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _fields() -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Key -> (field, type) of every setting."""
    found = {}
    for outer, outer_type in typing.get_type_hints(Config).items():
        if dataclasses.is_dataclass(outer_type):
            hints = typing.get_type_hints(outer_type)
            for inner in dataclasses.fields(outer_type):
                found[f"{outer}.{inner.name}"] = (inner, hints[inner.name])
        else:
            found[outer] = (Config.__dataclass_fields__[outer], outer_type)
    return found


def _flat(table: Mapping[str, Any]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    by_variable = {variable_of(key): key for key in _fields()}
    values: dict[str, tuple[object, str]] = {}
    for variable, value in environ.items():
        if not variable.startswith("COMPLLM_") or variable in _OTHER_VARIABLES:
            continue
        if variable not in by_variable:
            raise ConfigError(
                f"unknown environment variable {variable}{_hint(variable, by_variable)}"
            )
        values[by_variable[variable]] = (value, f"from {variable}")
    return values


def _build(values: Mapping[str, tuple[object, str]]) -> Config:
    fields = _fields()
    sections: dict[str, dict[str, Any]] = {}
    for key, (value, origin) in values.items():
        if key not in fields:
            raise ConfigError(f"unknown setting {key!r} {origin}{_hint(key, fields)}")
        setting, kind = fields[key]
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = checked_value(key, value, origin, setting, kind)
    types = typing.get_type_hints(Config)
    inner = {name: types[name](**sections[name]) for name in sections if name}
    return Config(**inner, **sections.get("", {}))


def checked_value(
    key: str, value: object, origin: str, setting: dataclasses.Field[Any], kind: Any
) -> object:
    """The value as the field's type, checked. Text from the environment is parsed; TOML types must
    fit."""
    allowed = _allowed(setting, kind)
    try:
        converted = _parse(value, kind) if isinstance(value, str) else value
    except ValueError:
        converted = None
    if kind is float and type(converted) is int:
        converted = float(converted)
    is_type = (
        converted in typing.get_args(kind)
        if typing.get_origin(kind) is Literal
        else type(converted) is kind
    )
    low, high = setting.metadata.get("range", (None, None))
    if not is_type or (low is not None and not low <= typing.cast(float, converted) <= high):
        raise ConfigError(f"{key} = {value!r} {origin}: expected {allowed}")
    return converted


def _parse(value: str, kind: Any) -> object:
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
    return kind(value) if kind in (int, float) else value


def _allowed(setting: dataclasses.Field[Any], kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    name = {int: "an integer", float: "a number", bool: "true or false", str: "text"}[kind]
    if "range" in setting.metadata:
        low, high = setting.metadata["range"]
        name += f" from {low} to {high}"
    return name


def _hint(name: str, known: Mapping[str, object]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
