"""Upstream's own flag lists (flags.json), and the check that every command passes before it is
printed or run: a flag, a type or a choice that the tool does not know is an error here, not there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from compllm.errors import ArtefactError

FLAGS_FILE = Path(__file__).with_name("flags.json")
_TYPES: dict[str, type] = {"int": int, "float": float}


@cache
def _data() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(FLAGS_FILE.read_text(encoding="utf-8"))
    return value


def program(tool: str) -> str:
    """The tool's executable, or its path below the examples folder of the release."""
    name: str = _data()["tools"][tool]["program"]
    return name


def lora_modules() -> dict[str, str]:
    """Hugging Face's module names -> TensorRT-LLM's."""
    modules: dict[str, str] = _data()["lora_modules"]
    return modules


def lora_module_ids() -> dict[str, int]:
    """TensorRT-LLM's module names -> the numbers in `lora_config`."""
    return {name: int(number) for name, number in _data()["lora_module_ids"].items()}


def check(tool: str, arguments: Sequence[str]) -> None:
    """Raises ArtefactError unless the tool takes exactly these arguments."""
    flags = _data()["tools"][tool]["flags"]
    parser = _Parser(prog=program(tool), add_help=False, allow_abbrev=False)
    for name, flag in flags.items():
        _add(parser, name, flag)
    parser.parse_args(list(arguments))
    for argument in arguments:
        if flags.get(argument, {}).get("deprecated"):
            raise ArtefactError(f"{program(tool)}: {argument} is deprecated")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArtefactError(f"{self.prog} does not take these arguments: {message}")


def _add(parser: argparse.ArgumentParser, name: str, flag: dict[str, Any]) -> None:
    names = [name, *flag.get("aliases", ())]
    required = bool(flag.get("required", False))
    if flag["type"] == "flag":
        parser.add_argument(*names, action="store_true", required=required)
        return
    choices = [choice for choice in flag.get("choices") or () if choice is not None]
    options: dict[str, Any] = {"nargs": flag["nargs"]} if "nargs" in flag else {}
    if choices:
        options["choices"] = choices
    parser.add_argument(
        *names, type=_TYPES.get(flag["type"], str), required=required, default=None, **options
    )
