"""A project folder: compllm.toml with settings and catalogue in one file, and the user's adapters.

`make_project` writes it, `Project` changes its catalogue. The file's comments and order stay: the
user edits it as well. Nothing else in the folder is touched but `adapters/` and the router's file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import tomlkit

from compllm.build_scripts.staging import write_atomically
from compllm.catalogue import (
    SHIPPED,
    Catalogue,
    Endpoint,
    load_catalogue,
    read_table,
    shipped_catalogue_path,
)
from compllm.config import Config, load_config
from compllm.errors import ConfigError
from compllm.paths import PROJECT_FILE
from compllm.storage import require_writable

ADAPTERS = "adapters"  # folder of the project's own adapters
SHIPPED_HEAD = f"{SHIPPED}routers/logistic.npz"

_CATALOGUE = """\
# The catalogue: the base, its adapters, the experts, and what routes a sub-query to them.
# `compllm expert add` and `compllm expert remove` change it; an edit by hand is as good.
#
# An expert is a table [[catalogue.experts]] of these keys. `name`. `domain`: in words. `adapter`:
# by name; without it the base answers as this expert. `url`, `model` and, for its key, `key_env`:
# an OpenAI-compatible server that answers as this expert. `system`: read before each question; a
# trained adapter needs none. `spell`: words that are read letter by letter. `examples`: its
# questions.
[catalogue]
# Questions for no expert: the base answers them. The router learns from them what to leave alone.
out_of_domain = []

[catalogue.base]
# What the base answers.
domain = "anything"
# What it reads before each question.
system = "{system}"
# How turns are marked: {templates}.
template = "{template}"

[catalogue.router]
# A cosine: below it the base answers, where no `head` is named. It belongs to the encoder.
threshold = {threshold}
# The encoder that vectors come from. A router of another encoder is refused.
encoder = "{encoder}"
# `head` names a fitted router with a threshold of its own. The tool writes it.

"""
_SHIPPED_ROLES = """\
[catalogue.generator]
# The adapter that writes plans. Without it the base does so, shown examples.
adapter = "generator"

[catalogue.aggregator]
# The adapter that writes answers out of responses. Without it the base does so, shown an example.
adapter = "aggregator"

[catalogue.confidence]
# How sure an answer is, as it was measured with the shipped adapters.
file = "{shipped}confidence.json"

"""
_ADAPTERS = """\
[catalogue.adapters]
# A table for each adapter. `path`: a PEFT directory, relative to this file; `shipped:` is the
# package's folder. `id`: it follows from name and content. `same_base = true`: it is made for this
# base, whatever name it records.
"""
_HEADER = re.compile(r"(?<=[^\n])\n(?=\[+catalogue)")  # of a table, without an empty line before it


@dataclass(frozen=True, slots=True)
class NewExpert:
    """What `Project.add` writes of an expert."""

    name: str
    domain: str
    adapter_id: int | None  # None: it has no adapter
    examples: tuple[str, ...]
    system: str = ""
    is_same_base: bool = False
    endpoint: Endpoint | None = None


def make_project(folder: Path, encoder: str, template: str, *, has_shipped: bool) -> Path:
    """Write the folder's compllm.toml; returns its path.

    encoder: its id. has_shipped: with the shipped experts. Raises ConfigError where there is one.
    """
    check_absent(folder)
    path = folder / PROJECT_FILE
    shipped = load_catalogue(shipped_catalogue_path())
    text = _settings_text() + _CATALOGUE.format(
        system=shipped.base.system,
        templates='"chatml" (SmolLM2, Qwen) or "llama3"',
        template=template,
        threshold=shipped.router.threshold,
        encoder=encoder,
    )
    if has_shipped:
        text += _SHIPPED_ROLES.format(shipped=SHIPPED)
    document = tomlkit.parse(text + _ADAPTERS)
    _catalogue(document)["out_of_domain"] = _lines(shipped.out_of_domain)
    if has_shipped:
        for adapter in shipped.adapters:
            table = tomlkit.table()
            table["path"] = f"{SHIPPED}adapters/{adapter.name}"
            _catalogue(document)["adapters"][adapter.name] = table
        _catalogue(document)["router"]["head"] = SHIPPED_HEAD
    text = _rendered(document)
    if has_shipped:
        experts = [_shipped_table(each) for each in read_table(shipped.path)["experts"]]
        text += "".join(f"\n[[catalogue.experts]]\n{tomlkit.dumps(table)}" for table in experts)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    _check(path)
    return path


def check_absent(folder: Path) -> None:
    """Raises ConfigError where there is a project, and where none can be written."""
    if (folder / PROJECT_FILE).exists():
        raise ConfigError(
            f"{folder / PROJECT_FILE} is there already: edit it, or name another folder"
        )
    require_writable(folder)


class Project:
    """The project of a file. `text` may be changed; `save` writes it, with every check."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for a file that is no project, or is wrong."""
        self.path = path.absolute()
        self.config, self.catalogue = _check(self.path)
        self.before = self.path.read_text(encoding="utf-8")
        self._document = tomlkit.parse(self.before)

    @property
    def folder(self) -> Path:
        return self.path.parent

    def adapter_dir(self, name: str) -> Path:
        """Where an expert's adapter is, or will be."""
        return self.folder / ADAPTERS / name

    def add(self, expert: NewExpert) -> None:
        catalogue = _catalogue(self._document)
        table = tomlkit.table()
        table["name"], table["domain"] = expert.name, expert.domain
        if expert.adapter_id is not None:
            self._add_adapter(expert.name, expert.adapter_id, expert.is_same_base)
            table["adapter"] = expert.name
        if expert.endpoint is not None:
            table["url"], table["model"] = expert.endpoint.url, expert.endpoint.model
            if expert.endpoint.key_env:
                table["key_env"] = expert.endpoint.key_env
        if expert.system:
            table["system"] = expert.system
        table["examples"] = _lines(expert.examples)
        if "experts" not in catalogue:
            catalogue["experts"] = tomlkit.aot()
        catalogue["experts"].append(table)

    def _add_adapter(self, name: str, adapter_id: int, is_same_base: bool = False) -> None:
        catalogue = _catalogue(self._document)
        adapter = tomlkit.table()
        adapter["path"] = f"{ADAPTERS}/{name}"
        adapter["id"] = adapter_id
        if is_same_base:
            adapter["same_base"] = True
        if "adapters" not in catalogue:
            catalogue["adapters"] = tomlkit.table()
        catalogue["adapters"][name] = adapter

    def _drop_adapter(self, name: str | None) -> None:
        """Its table goes, unless an expert or a role has it, or it is shipped: it may be named
        again."""
        catalogue = _catalogue(self._document)
        users = [each.get("adapter") for each in catalogue.get("experts", ())]
        users += [catalogue.get(role, {}).get("adapter") for role in ("generator", "aggregator")]
        table = catalogue.get("adapters", {}).get(name) if name not in (None, *users) else None
        if table is not None and not str(table.get("path", "")).startswith(SHIPPED):
            del catalogue["adapters"][name]

    def remove(self, name: str) -> None:
        experts = _catalogue(self._document)["experts"]
        place = [str(each["name"]) for each in experts].index(name)
        adapter = experts[place].get("adapter")
        del experts[place]
        self._drop_adapter(adapter)

    def set_role(self, role: str, name: str, adapter_id: int) -> None:
        """The adapter of the generator or of the aggregator."""
        catalogue = _catalogue(self._document)
        before = catalogue.get(role, {}).get("adapter")
        self._add_adapter(name, adapter_id)
        if role not in catalogue:
            catalogue[role] = tomlkit.table()
        catalogue[role]["adapter"] = name
        self._drop_adapter(before)

    def set_head(self, head: str | None) -> None:
        """The router's file, relative to this one's."""
        router = _catalogue(self._document)["router"]
        if head is not None:
            router["head"] = head
        elif "head" in router:
            del router["head"]

    def save(self) -> Catalogue:
        """Write it and read it back. Raises ConfigError; the file is then as it was."""
        write_atomically(self.path, _rendered(self._document))
        try:
            return _check(self.path)[1]
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """As it was when this was made."""
        write_atomically(self.path, self.before)


def _check(path: Path) -> tuple[Config, Catalogue]:
    config = load_config(path, environ={})
    if config.catalogue != str(path):
        raise ConfigError(
            f"{path} holds no table [catalogue], so it is no project: make one with `compllm init`"
        )
    return config, load_catalogue(path)


def _settings_text() -> str:
    return (resources.files(__package__) / "settings.toml").read_text(encoding="utf-8")


def _rendered(document: tomlkit.TOMLDocument) -> str:
    return _HEADER.sub("\n\n", tomlkit.dumps(document).rstrip("\n")) + "\n"


def _catalogue(document: tomlkit.TOMLDocument) -> Any:
    return document["catalogue"]


def _lines(texts: Sequence[str]) -> Any:
    array = tomlkit.array()
    array.extend(texts)
    return array.multiline(True)


def _shipped_table(expert: dict[str, Any]) -> Any:
    table = tomlkit.document()
    for key, value in expert.items():
        if key == "examples":
            table[key] = _lines(value)
        else:
            table[key] = tomlkit.string(value, literal="\\" in value)
    return table
