"""What the command line reads and writes: files and stdin in; text, tables, JSON and errors out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import typer

from compllm import extras
from compllm.errors import CompllmError, ConfigError, situation_of
from compllm.storage import explain_os_error, is_full

STDIN = Path("-")
INTERRUPTED, TERMINATED = 130, 143  # exit statuses after SIGINT and SIGTERM, as shells have them
STOPPED = (INTERRUPTED, TERMINATED)
_MAX_INPUT_BYTES = 4_000_000  # read at most, before any limit of the configuration is known
# typer may carry its own copy of click: the root of its usage errors, by way of a public one.
_UsageError: type[Any] = typer.BadParameter.__mro__[2]
_PIPE_WIDTH = 200  # columns of a table that is not on a terminal


def read_text(path: Path) -> str:
    """A file's text, or that of standard input for '-'. Raises ConfigError."""
    with _opened(path) as file:
        content = file.read(_MAX_INPUT_BYTES + 1)
    if len(content) > _MAX_INPUT_BYTES:
        raise ConfigError(f"{named(path)} has more than {_MAX_INPUT_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{named(path)} is not UTF-8 text (byte {error.start})") from error


@contextmanager
def opened_lines(path: Path) -> Iterator[Iterator[str]]:
    """The lines of a file that may be of any length, with their ends; '-' is standard input.

    One line is at most as long as a text of `read_text`. Raises ConfigError; of a line's damage it
    names the line alone.
    """
    with _opened(path) as file:
        yield _lines(file)


def _lines(file: BinaryIO) -> Iterator[str]:
    number, encoding = 1, "utf-8-sig"
    while line := file.readline(_MAX_INPUT_BYTES + 1):
        if len(line) > _MAX_INPUT_BYTES:
            raise ConfigError(f"line {number} has more than {_MAX_INPUT_BYTES} bytes")
        try:
            yield line.decode(encoding)
        except UnicodeDecodeError as error:
            reason = f"line {number} is not UTF-8 text (byte {error.start})"
            raise ConfigError(reason) from error
        number, encoding = number + 1, "utf-8"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with nullcontext(sys.stdin.buffer) if path == STDIN else path.open("rb") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"cannot read {named(path)}: {error.strerror}") from error


def named(path: Path) -> str:
    """An input as an error names it."""
    return "standard input" if path == STDIN else str(path)


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
        return error.format_message() + _hint(error), 2
    if isinstance(error, CompllmError):
        return str(error), situation_of(error).exit_status
    if isinstance(error, ImportError) and not (error.name or "").startswith("compllm"):
        return f"{error}: {extras.hint(error)}, then see `compllm doctor`", 1
    if isinstance(error, OSError) and (reason := explain_os_error(error)) is not None:
        return reason, 1 if is_full(error) else 2
    details = "COMPLLM_DEBUG=1 shows where"
    return f"unexpected {type(error).__name__}: {error} ({details})", 1


def _hint(error: Any) -> str:
    """What a text on the command line needs to be read as one."""
    option = getattr(error, "option_name", "")
    if option[:1] == "-" and not option[1:2].isalpha() and option[1:2] != "-":
        return ': before a text that begins with "-", write "--"'
    if "unexpected extra argument" in error.format_message():
        return ": put a question into quotes"
    return ""


@contextmanager
def progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal; yields what moves it on by a count."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
