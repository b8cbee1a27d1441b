"""What every benchmark ends with: tables for people, the same data as one JSON line and as a file.

A benchmark calls `add_arguments` on its parser, makes a `Report`, adds rows while it measures, and
calls `finish`. The last line of stdout is the JSON.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

Cell = str | int | float | bool | None
Row = dict[str, Cell]

_FOLDERS = re.compile(r"^([\w-]+=|)/(?:[^/]+/)*(?=[^/])")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments all benchmarks share."""
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="what is drawn of the workload; default: 0"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run in seconds; proves little"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help="where the results go (NAME.json); default: benchmarks/results, but a quick run saves "
        "only if this is given",
    )


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """p50, p95 and p99: the smallest value that a percentage of all does not exceed."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("there are no values to take percentiles of")
    return {
        f"p{percent}": ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
        for percent in (50, 95, 99)
    }


def hardware() -> dict[str, Cell]:
    """The machine that measures. No names of hosts or users."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "machine": platform.machine(),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        # Far above what the benchmark itself computes: others disturbed the clock times.
        "load_average_at_start": round(os.getloadavg()[0], 2),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python, compllm and the distributions named; "absent" for one that is not installed."""
    system = " ".join([platform.system(), *platform.libc_ver()]).strip()
    found = {"python": platform.python_version(), "system": system}
    for package in ("compllm", *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def commit() -> dict[str, Cell]:
    """The commit measured, and whether tracked files differ from it. Nulls outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Results do not count: writing the first must not taint the second.
        changes = git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results")
        return {"commit": git("rev-parse", "HEAD"), "is_dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "is_dirty": None}


def _told(value: Any) -> Any:
    """An argument as others may read it: of a file its name, not the folders of the machine that
    ran it.

    PATH and NAME=PATH, and lists of them; the rest as it is.
    """
    if isinstance(value, list | tuple):
        return [_told(each) for each in value]
    if isinstance(value, Path | str):
        return _FOLDERS.sub(r"\1", str(value))
    return value


class Report:
    """Collects what one benchmark measured.

    name: of the result file. arguments: parsed by `add_arguments` and the benchmark's own.
    packages: distributions whose versions matter. note: what a reader must know about all tables.
    """

    def __init__(
        self, name: str, arguments: argparse.Namespace, packages: Iterable[str] = (), note: str = ""
    ) -> None:
        self.name = name
        self.tables: dict[str, list[Row]] = {}
        self.summary: dict[str, Any] = {}
        self._arguments = arguments
        self._note = note
        self._head = {
            "name": name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **commit(),
            "hardware": hardware(),
            "versions": versions(packages),
            "arguments": {
                key: _told(value)
                for key, value in vars(arguments).items()
                if key != "out"  # a folder of the machine that ran it
            },
            "note": note,
        }

    def add(self, table: str, **cells: Cell) -> None:
        """One more row of a table; the name of a cell is its column, with the unit in it."""
        self.tables.setdefault(table, []).append(cells)

    def data(self) -> dict[str, Any]:
        return {**self._head, "summary": self.summary, "tables": self.tables}

    def finish(self, plot: Callable[[Axes, Mapping[str, list[Row]]], None] | None = None) -> None:
        """Print the tables, save NAME.json (and NAME.png where matplotlib is there), end with the
        JSON line."""
        self._print_tables()
        folder: Path = self._arguments.out
        if not (self._arguments.quick and folder == RESULTS):
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.data(), indent=1, allow_nan=False)
            (folder / f"{self.name}.json").write_text(text + "\n")
            if plot is not None:
                self._save_plot(folder / f"{self.name}.png", plot)
        print(json.dumps(self.data(), allow_nan=False), flush=True)

    def _print_tables(self) -> None:
        from rich.console import Console
        from rich.table import Table

        console = Console()
        console = Console(width=max(console.width, 120))
        for title, rows in self.tables.items():
            columns = list(dict.fromkeys(column for row in rows for column in row))
            table = Table(title=title, title_justify="left")
            for column in columns:
                is_text = any(isinstance(row.get(column), str) for row in rows)
                table.add_column(column, justify="left" if is_text else "right")
            for row in rows:
                table.add_row(*(_format(row.get(column)) for column in columns))
            console.print(table)
        if self._note:
            console.print(self._note)

    def _save_plot(self, path: Path, plot: Callable[[Axes, Mapping[str, list[Row]]], None]) -> None:
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        plot(figure.add_subplot(), self.tables)
        figure.savefig(path, dpi=120)


def _format(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 10 else f"{cell:,.1f}"
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)
