"""What the command line reads and writes: files and stdin in; text, tables, JSON and errors out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from compllm.errors import CompllmError, ConfigError, PlanError, QueryError

STDIN = Path("-")
_MAX_INPUT_BYTES = 4_000_000  # read at most, before any limit of the configuration is known
# typer may carry its own copy of click: the root of its usage errors, by way of a public one.
_UsageError: type[Any] = typer.BadParameter.__mro__[2]
_PIPE_WIDTH = 200  # columns of a table that is not on a terminal


def read_text(path: Path) -> str:
    """A file's text, or that of standard input for '-'. Raises ConfigError."""
    origin = "standard input" if path == STDIN else str(path)
    try:
        if path == STDIN:
            content = sys.stdin.buffer.read(_MAX_INPUT_BYTES + 1)
        else:
            with path.open("rb") as handle:
                content = handle.read(_MAX_INPUT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {origin}: {error.strerror}") from error
    if len(content) > _MAX_INPUT_BYTES:
        raise ConfigError(f"{origin} has more than {_MAX_INPUT_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{origin} is not UTF-8 text (byte {error.start})") from error


def write(content: str | bytes, output: Path | None) -> None:
    """To a file, or to stdout for None. Raises ConfigError."""
    data = content.encode() if isinstance(content, str) else content
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        output.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from error


def as_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def print_json(value: object) -> None:
    print(as_json(value), end="")


def print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Cells are plain text: nothing in them is taken for rich's markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def say(message: str) -> None:
    print(message, file=sys.stderr)


def explain(error: BaseException) -> tuple[str, int]:
    """One line about the error, and the exit status."""
    if isinstance(error, BaseExceptionGroup):
        ours = error.subgroup(CompllmError)
        return explain((ours or error).exceptions[0])
    if isinstance(error, _UsageError):
        return error.format_message(), 2
    if isinstance(error, ConfigError | PlanError | QueryError):
        return str(error), 2
    if isinstance(error, CompllmError):
        return str(error), 1
    if isinstance(error, ImportError) and not (error.name or "").startswith("compllm"):
        return f"{error}: pip install 'compllm[embedded]', then see `compllm doctor`", 1
    details = "COMPLLM_DEBUG=1 shows where"
    return f"unexpected {type(error).__name__}: {error} ({details})", 1
