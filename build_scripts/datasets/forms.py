"""Reads the tables of forms (forms.toml), of single facts (facts.toml) and of ordinary things
(everyday.toml)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from compllm.build_scripts.datasets.kinds import Split


def forms(name: str, table: str = "forms") -> list[Any]:
    """The wordings of one name: texts, or lists of texts."""
    return tables_of(table)[name]


def tables_of(table: str) -> dict[str, list[Any]]:
    """Every name of a table with its wordings."""
    found: dict[str, list[Any]] = _read("forms")[table]
    return found


def read_facts() -> dict[str, Any]:
    """Domain -> lists of an answer and its questions; also compounds and well-known elements."""
    return _read("facts")


def facts_of(domain: str, split: Split) -> Iterator[tuple[str, list[str]]]:
    """Each single fact's answer, and its questions of the split: the last of three or more is for
    validation and test."""
    for answer, *questions in read_facts()[domain]:
        if split != "train":
            yield answer, questions[-1:]
        else:
            yield answer, questions[:-1] if len(questions) > 2 else questions


@cache
def read_everyday() -> dict[str, Any]:
    """Wordings by name; `names`: what stands for the braces, one list a name."""
    table = _read("everyday")
    names = {
        name: each.split() if isinstance(each, str) else each
        for name, each in table["names"].items()
    }
    wordings = {name: each["all"] for name, each in table.items() if name != "names"}
    return {"names": names, **wordings}


@cache
def _read(name: str) -> dict[str, Any]:
    path = Path(__file__).with_name("wordings") / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))
