"""What `comp_llm` reads in a repository: the catalogue as these engines serve it, and its settings.

The catalogue of the checkout says who the experts are; which Triton model and which adapter serves
each of them is known only now.
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compllm.build_scripts.trtllm.record import ADAPTERS, TOKENIZER, TrtManifest
from compllm.catalogue import Catalogue, load_catalogue, read_table
from compllm.config import load_config, read_toml
from compllm.errors import ArtefactError, ConfigError

CATALOGUE, SETTINGS, GATE = "experts.toml", "compllm.toml", "gate.npz"


def write_catalogue(catalogue: Catalogue, manifest: TrtManifest, engines: Path, to: Path) -> None:
    """experts.toml: every expert on the model and adapter that serve it; with it, the files that it
    names. Raises ArtefactError when an expert's adapter is in no engine, ConfigError when a file is
    missing."""
    table = read_table(catalogue.path)
    models = {entry.expert: entry.name for entry in manifest.engines}
    served = {adapter.name: adapter for adapter in manifest.adapters}
    table["base"]["model"] = models["base"]
    for expert in table.get("experts", []):
        adapter = expert.get("adapter")
        if expert["name"] in models:
            # Its engine has what it learned in the weights.
            expert["model"] = models[expert["name"]]
            expert.pop("adapter", None)
            continue
        expert.pop("model", None)
        if adapter and adapter not in served:
            raise ArtefactError(
                f"expert {expert['name']} of {catalogue.path} needs adapter {adapter}, which these "
                f"engines do not have (they have {', '.join(served) or 'none'}): build them again"
            )
    table["adapters"] = {
        name: {"id": entry.task_id, "path": str(engines / ADAPTERS / str(entry.task_id))}
        for name, entry in served.items()
    }
    for file in catalogue.files:
        place = _place(file.path, catalogue.path.parent, Path(file.table))
        _copy(file.path, to / place, f"{catalogue.path}: {file.table}.{file.key}")
        table[file.table][file.key] = place.as_posix()
    path = to / CATALOGUE
    path.write_text(render_toml(table), encoding="utf-8")
    load_catalogue(path)  # reads what it wrote, with every check


def write_settings(
    config: Path | None, manifest: TrtManifest, engines: Path, final: Path, to: Path
) -> None:
    """compllm.toml: the user's settings with what this repository has: catalogue, tokenizer, the
    weights of adapters that an engine's cache may lack, and the gate's file.

    final: the repository's place once it is made. Raises ConfigError for settings that are wrong.
    """
    table = read_toml(config) if config is not None else {}
    table["catalogue"] = str(final / CATALOGUE)
    table.setdefault("server", {})["tokenizer"] = str(engines / TOKENIZER)
    table["server"].pop("url", None)  # the server's own, which launch.sh knows
    if manifest.adapters:
        table["server"].setdefault("adapters_dir", str(engines / ADAPTERS))
    if gate := table.get("gate", {}).get("file"):
        _copy(Path(gate), to / GATE, f"{config}: gate.file")
        table["gate"]["file"] = str(final / GATE)
    path = to / SETTINGS
    path.write_text(render_toml(table), encoding="utf-8")
    load_config(path, environ={})


def render_toml(table: Mapping[str, Any]) -> str:
    """TOML of texts, numbers, lists of texts, tables and lists of tables; comments are not kept."""
    text = "\n".join(_lines(table, ())) + "\n"
    assert tomllib.loads(text) == table
    return text


def _place(file: Path, folder: Path, otherwise: Path) -> Path:
    """Where a file goes in the repository: as it lies below `folder`, else into `otherwise`."""
    # Links are not followed: a mounted ConfigMap's files are links to a folder elsewhere.
    file, folder = Path(os.path.abspath(file)), Path(os.path.abspath(folder))
    return file.relative_to(folder) if file.is_relative_to(folder) else otherwise / file.name


def _copy(file: Path, to: Path, key: str) -> None:
    if not file.is_file():
        raise ConfigError(f"{key} = {str(file)!r}: there is no such file: put it there, or name it")
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


def _lines(table: Mapping[str, Any], path: Sequence[str]) -> list[str]:
    lines = [f"{_key(k)} = {_value(v)}" for k, v in table.items() if not _is_nested(v)]
    for key, value in table.items():
        inner = (*path, _key(key))
        if isinstance(value, dict):
            lines += ["", f"[{'.'.join(inner)}]", *_lines(value, inner)]
        elif _is_nested(value):
            for each in value:
                lines += ["", f"[[{'.'.join(inner)}]]", *_lines(each, inner)]
    return lines


def _is_nested(value: object) -> bool:
    is_tables = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    return isinstance(value, dict) or is_tables


def _key(key: str) -> str:
    is_bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if is_bare else _value(key)


def _value(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    # JSON spells texts, numbers, true and false as TOML does, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
