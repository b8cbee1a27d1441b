"""Short runs over a grid of settings, compared on validation: which learning rate, which rank.

Each run has its own state, so a sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compllm.build_scripts.staging import say, write_atomically
from compllm.build_scripts.training.settings import TrainSettings
from compllm.errors import ConfigError

Train = Callable[[TrainSettings, str], dict[str, Any] | None]  # settings, name -> manifest


def parse_grid(texts: Sequence[str], names: Mapping[str, str]) -> dict[str, list[Any]]:
    """`lr=5e-4,1e-3` and so on -> field of TrainSettings -> its values. Raises ConfigError.

    names: option -> field.
    """
    types: dict[str, Any] = {
        field.name: type(field.default) for field in dataclasses.fields(TrainSettings)
    }
    grid: dict[str, list[Any]] = {}
    for text in texts:
        option, _, values = text.partition("=")
        if option not in names:
            raise ConfigError(f"--sweep {text!r}: expected one of {', '.join(names)}, then =VALUES")
        field = names[option]
        try:
            grid[field] = [types[field](value) for value in values.split(",")]
        except ValueError as error:
            raise ConfigError(f"--sweep {text!r}: {error}") from error
    return grid


def sweep(settings: TrainSettings, grid: Mapping[str, list[Any]], train: Train, out: Path) -> bool:
    """Run every combination, print a table and write `out` as JSON; False when it was stopped."""
    rows: list[dict[str, Any]] = []
    for values in itertools.product(*grid.values()):
        changes = dict(zip(grid, values, strict=True))
        name = "-".join(f"{field}={value:g}" for field, value in changes.items())
        say(f"sweep: {name}")
        manifest = train(replace(settings, **changes), name)
        if manifest is None:
            return False
        best = manifest["best"]
        rows.append(
            {
                **changes,
                "exact": best["exact"],
                "loss": best["loss"],
                "best_step": best["step"],
                "steps": manifest["steps"],
                "seconds": manifest["seconds"],
            }
        )
        write_atomically(out, json.dumps({"data": manifest["data"], "runs": rows}, indent=2) + "\n")
    rows.sort(key=lambda row: (-row["exact"], row["loss"]))
    columns = list(rows[0])
    print(" | ".join(columns))
    for row in rows:
        print(" | ".join(f"{row[column]:g}" for column in columns))
    return True
