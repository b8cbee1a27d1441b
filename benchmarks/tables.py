"""A report's tables as Markdown, beside the JSON and the picture that `report.Report` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.intervals import Estimate
from benchmarks.report import Cell, Report, Row


def interval_cells(name: str, estimate: Estimate) -> dict[str, Cell]:
    """Percent with its interval, as three columns that a program can read."""
    value = estimate.percent()
    return {
        f"{name}_%": value["value"],
        f"{name}_low": value["low"],
        f"{name}_high": value["high"],
    }


def markdown(title: str, tables: Mapping[str, Sequence[Row]], note: str = "") -> str:
    """All tables one after another. Columns NAME_%, NAME_low and NAME_high become one."""
    blocks = [f"# {title}"] + ([note] if note else [])
    for name, rows in tables.items():
        merged = [_merged(row) for row in rows]
        columns = list(dict.fromkeys(column for row in merged for column in row))
        lines = [_line(columns), _line(["---"] * len(columns))]
        lines += [_line([row.get(column, "") for column in columns]) for row in merged]
        blocks += [f"## {name}", "\n".join(lines)]
    return "\n\n".join(blocks) + "\n"


def write_markdown(report: Report, title: str, folder: Path, note: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(title, report.tables, note)
    (folder / f"{report.name}.md").write_text(text, encoding="utf-8")


def _merged(row: Row) -> dict[str, str]:
    merged: dict[str, str] = {}
    for column, cell in row.items():
        name, _, kind = column.rpartition("_")
        if kind in ("low", "high") and f"{name}_%" in row:
            continue
        if kind == "%":
            text = _percent(cell)
            if f"{name}_low" in row:
                text += f" ({_percent(row[f'{name}_low'])} to {_percent(row[f'{name}_high'])})"
            merged[f"{name.replace('_', ' ')} %"] = text
        else:
            merged[column.replace("_", " ")] = "" if cell is None else str(cell)
    return merged


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _percent(cell: Cell) -> str:
    return f"{cell:.1f}" if isinstance(cell, (int, float)) else str(cell or "")
