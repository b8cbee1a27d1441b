"""The catalogue of experts, read from `engines/experts.toml`: who there is, for what, on which
adapter; and which adapters plan and compose.

A file of settings may hold it too, as its table `catalogue`: so does a project's compllm.toml. A
path in it that begins with `shipped:` is below the package's folder `engines`, any other is
relative to the file. Everything in it is checked when it is read; an error names the file, the key
and the value.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compllm.config import read_toml
from compllm.errors import ConfigError
from compllm.paths import base_catalogue, resource_dir, selected_base
from compllm.prompts import TEMPLATES, ChatTemplate
from compllm.types import Expert

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}\Z")
SHIPPED = "shipped:"  # a path below the package's folder `engines`


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter of the engine."""

    name: str
    id: int  # lora_task_id on the wire
    path: Path | None  # PEFT directory to build or load it from; None: the engine has it already
    is_same_base: bool = False  # made for this base, whatever name it records


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server that answers as an expert."""

    url: str  # http://host:port, with or without /v1
    model: str  # its name there
    key_env: str = ""  # the environment variable that holds the server's key; empty: it wants none

    @property
    def key(self) -> str:
        """`Expert.model` of its expert. Experts of one server, model and key share an endpoint."""
        return f"{self.model} at {self.url}" + (f" with {self.key_env}" if self.key_env else "")


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """A threshold belongs to the encoder it was calibrated with, a head brings its own."""

    threshold: float  # cosine with the example questions below which the base answers
    encoder: str  # id of that encoder
    head: Path | None = None  # a fitted router, instead of the example questions


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that the catalogue names: under which key, and where it is."""

    table: str
    key: str
    path: Path


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The base, its adapters, the experts and what routes to them."""

    path: Path
    base: Expert  # answers what no expert is near to
    template: ChatTemplate
    adapters: tuple[Adapter, ...]
    experts: tuple[Expert, ...]  # without the base
    examples: tuple[tuple[str, ...], ...]  # example questions of each expert, in their order
    router: RouterSettings
    out_of_domain: tuple[str, ...]  # questions for no expert, to calibrate with
    generator: Adapter | None = None  # writes plans; None: the base, shown examples
    aggregator: Adapter | None = None  # writes answers; None: the base, shown an example
    confidence: Path | None = None  # the calibration of answers; None: they have no confidence
    endpoints: tuple[Endpoint, ...] = ()  # of the experts that no engine here answers as

    @property
    def files(self) -> tuple[NamedFile, ...]:
        """Every file that it names: a copy of the catalogue is useless without them. Adapters are
        not among them: engines are built from their folders."""
        named = (("router", "head", self.router.head), ("confidence", "file", self.confidence))
        return tuple(NamedFile(table, key, path) for table, key, path in named if path is not None)

    def expert(self, name: str) -> Expert:
        """The expert or base of this name. Raises ConfigError with the names there are."""
        for expert in (self.base, *self.experts):
            if expert.name == name:
                return expert
        names = ", ".join(expert.name for expert in (self.base, *self.experts))
        raise ConfigError(f"no expert {name!r} in {self.path}: there are {names}")

    def adapter(self, name: str) -> Adapter:
        """The adapter of this name. Raises ConfigError with the names there are."""
        for adapter in self.adapters:
            if adapter.name == name:
                return adapter
        names = ", ".join(adapter.name for adapter in self.adapters) or "none"
        raise ConfigError(f"no adapter {name!r} in {self.path}: there are {names}")

    def adapter_of_role(self, role: str) -> Adapter | None:
        """Of the "generator" or the "aggregator"; None where the base does its work."""
        return {"generator": self.generator, "aggregator": self.aggregator}[role]

    def role_id(self, name: str, default: Adapter | None) -> int | None:
        """lora_task_id of an adapter that a setting names: empty is the catalogue's own choice,
        'base' the bare base (None). Raises ConfigError."""
        if name == "base":
            return None
        chosen = self.adapter(name) if name else default
        return chosen.id if chosen else None


def shipped_catalogue_path() -> Path:
    return resource_dir("engines") / "experts.toml"


def default_catalogue_path() -> Path:
    """The shipped one; where `compllm base use` chose a base that the shipped adapters do not fit,
    that of this base alone."""
    alone = base_catalogue()
    is_chosen = selected_base() is not None and alone.is_file()
    return alone if is_chosen else shipped_catalogue_path()


def load_catalogue(path: str | Path | None = None) -> Catalogue:
    """Read and check a catalogue; None is the default one. Raises ConfigError."""
    path = Path(path or default_catalogue_path())
    top = _top(path)
    base = top.table("base")
    adapters = _adapters(top.table("adapters", {}))
    entries = top.tables("experts")
    model = base.take("model", str, "tensorrt_llm")
    template = base.take("template", str, "chatml")
    if template not in TEMPLATES:
        raise base.error("template", template, "one of " + ", ".join(sorted(TEMPLATES)))
    domain = base.take("domain", str, "anything")
    base_expert = Expert("base", domain, base.take("system", str), model)
    experts, examples = [], []
    endpoints: dict[Endpoint, None] = {}
    for entry in entries:
        endpoint = _endpoint(entry)
        if endpoint is not None:
            endpoints[endpoint] = None
        experts.append(_expert(entry, endpoint.key if endpoint else model, adapters))
        examples.append(entry.take_texts("examples"))
        if not examples[-1]:
            raise entry.error("examples", [], "at least one example question")
        entry.finish()
    names = ["base", *(expert.name for expert in experts)]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise top.error("experts", name, "names used once; 'base' is the base model's")
    router = top.table("router")
    threshold = router.take_number("threshold", -1.0, 1.0)
    encoder, head = router.take("encoder", str), router.take("head", str, "")
    settings = RouterSettings(threshold, encoder, located(path, head) if head else None)
    catalogue = Catalogue(
        path,
        base_expert,
        TEMPLATES[template],
        tuple(adapters.values()),
        tuple(experts),
        tuple(examples),
        settings,
        top.take_texts("out_of_domain"),
        _role(top.table("generator", {}), adapters),
        _role(top.table("aggregator", {}), adapters),
        _confidence(path, top.table("confidence", {})),
        tuple(endpoints),
    )
    for table in (top, base, router):
        table.finish()
    return catalogue


def check_expert_name(name: str) -> str:
    """The name, when an expert can have it. Raises ConfigError."""
    if not _NAME.match(name) or name == "base":
        raise ConfigError(
            f"{name[:80]!r} cannot be an expert's name: give a lower-case name such as "
            "'chemistry' (letters, digits, '_' and '-', at most 64; 'base' is the base model's)"
        )
    return name


def read_table(path: Path) -> dict[str, Any]:
    """The catalogue's keys, of a file of its own or of one of settings. Raises ConfigError."""
    table = read_toml(path)
    inner = table.get("catalogue")
    return inner if isinstance(inner, dict) else table


def located(path: Path, text: str) -> Path:
    """Where a path is that the catalogue at `path` names."""
    if text.startswith(SHIPPED):
        return resource_dir("engines") / text.removeprefix(SHIPPED)
    return path.parent / text


def _top(path: Path) -> _Table:
    table = read_toml(path)
    inner = table.get("catalogue")
    return _Table(path, "catalogue", inner) if isinstance(inner, dict) else _Table(path, "", table)


def _endpoint(entry: _Table) -> Endpoint | None:
    """That of an expert with a `url`: it then has a `model` there, and no adapter."""
    if "url" not in entry.keys:
        return None
    url = entry.take("url", str)
    if not url.startswith(("http://", "https://")):
        raise entry.error("url", url, "http://HOST:PORT or https://HOST of the expert's server")
    if "adapter" in entry.keys:
        adapter = entry.take("adapter", str, "")
        raise entry.error("adapter", adapter, "no adapter, because the expert has a url")
    return Endpoint(url, entry.take("model", str), entry.take("key_env", str, ""))


def _expert(entry: _Table, model: str, adapters: dict[str, Adapter]) -> Expert:
    name = entry.take("name", str)
    if not _NAME.match(name):
        raise entry.error("name", name, "a lower-case name such as 'chemistry'")
    adapter = entry.take("adapter", str, "")
    if adapter and adapter not in adapters:
        raise entry.error("adapter", adapter, "one of " + (", ".join(adapters) or "none"))
    return Expert(
        name,
        entry.take("domain", str),
        # None where an adapter says who the expert is: trained ones read no system text.
        entry.take("system", str, ""),
        entry.take("model", str, model),
        adapter or None,
        adapters[adapter].id if adapter else None,
        _pattern(entry, "spell"),
    )


def _pattern(entry: _Table, key: str) -> str:
    text: str = entry.take(key, str, "")
    try:
        re.compile(text)
    except re.error as error:
        raise entry.error(key, text, f"a regular expression ({error})") from None
    return text


def _adapters(tables: _Table) -> dict[str, Adapter]:
    adapters: dict[str, Adapter] = {}
    for name in tables.keys:
        table = tables.table(name)
        is_named = "id" in table.keys
        folder = table.take("path", str, "")
        where = located(tables.path, folder) if folder else None
        trained_id = _trained_id(where) if where is not None else None
        if where is not None and not is_named:
            if trained_id is None:
                expected = f"an 'id', or a lora_task_id in {where / 'manifest.json'}"
                raise table.error("path", str(where), expected)
            adapter_id = trained_id
        else:
            adapter_id = int(table.take_number("id", 1, 2**63 - 1, kind=int))
            if trained_id not in (None, adapter_id):
                raise table.error("id", adapter_id, f"{trained_id}, as its manifest.json says")
        if any(adapter.id == adapter_id for adapter in adapters.values()):
            raise table.error("id", adapter_id, "an id that no other adapter has")
        adapters[name] = Adapter(name, adapter_id, where, table.take("same_base", bool, False))
        table.finish()
    return adapters


def _trained_id(directory: Path) -> int | None:
    """The id that training wrote beside the adapter: it follows from name and content, so that
    every engine finds the same one. None: it wrote none."""
    try:
        text = (directory / "manifest.json").read_text(encoding="utf-8")
        adapter_id = json.loads(text)["lora_task_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return adapter_id if isinstance(adapter_id, int) else None


def _role(table: _Table, adapters: dict[str, Adapter]) -> Adapter | None:
    name = table.take("adapter", str, "")
    if name and name not in adapters:
        raise table.error("adapter", name, "one of " + (", ".join(adapters) or "none"))
    table.finish()
    return adapters[name] if name else None


def _confidence(path: Path, table: _Table) -> Path | None:
    file = table.take("file", str, "")
    table.finish()
    return located(path, file) if file else None


_REQUIRED = object()


class _Table:
    """A TOML table that is emptied key by key, so that what is left over is unknown."""

    def __init__(self, path: Path, name: str, values: Any) -> None:
        self.path, self._name = path, name
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {name} = {values!r}: expected a table")
        self._values = dict(values)

    @property
    def keys(self) -> tuple[str, ...]:
        """Those that are not taken yet."""
        return tuple(self._values)

    def table(self, key: str, default: Any = _REQUIRED) -> _Table:
        """The table under a key."""
        return _Table(self.path, self._key(key), self.take(key, dict, default))

    def tables(self, key: str) -> list[_Table]:
        """The list of tables under a key; none where it is not there."""
        return [
            _Table(self.path, f"{self._key(key)}[{index}]", entry)
            for index, entry in enumerate(self.take(key, list, []), start=1)
        ]

    def take(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        value: Any = self._values.pop(key, default)
        if value is _REQUIRED:
            raise ConfigError(f"{self.path}: {self._key(key)} is missing")
        is_empty = kind is str and default is _REQUIRED and value == ""
        if not isinstance(value, kind) or is_empty:
            nouns: dict[type, str] = {
                str: "text",
                dict: "a table",
                list: "a list",
                bool: "true or false",
            }
            raise self.error(key, value, nouns[kind])
        return value

    def take_texts(self, key: str) -> tuple[str, ...]:
        values = self.take(key, list, [])
        for value in values:
            if not isinstance(value, str) or not value.strip():
                raise self.error(key, value, "a list of texts")
        return tuple(values)

    def take_number(self, key: str, low: float, high: float, kind: type = float) -> float:
        value: Any = self._values.pop(key, None)
        is_number = isinstance(value, int if kind is int else (int, float))
        if not is_number or isinstance(value, bool) or not low <= value <= high:
            noun = "an integer" if kind is int else "a number"
            raise self.error(key, value, f"{noun} from {low} to {high}")
        number: float = value
        return number

    def finish(self) -> None:
        if self._values:
            raise ConfigError(f"{self.path}: unknown key {self._key(next(iter(self._values)))}")

    def error(self, key: str, value: object, expected: str) -> ConfigError:
        return ConfigError(f"{self.path}: {self._key(key)} = {value!r}: expected {expected}")

    def _key(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key
