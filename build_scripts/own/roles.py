"""A generator or an aggregator of one's own: trained for the base in use, put into the project.

The data of a generator are a user's decompositions, else the sets of make_datasets.py, which are
made once. Those of an aggregator are its sets. `experts.install_role` puts the adapter into the
project.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compllm.build_scripts.fetch_base import ensure_base
from compllm.build_scripts.json_lines import read_json_lines
from compllm.build_scripts.own.examples import text_of
from compllm.build_scripts.own.experts import install_role
from compllm.build_scripts.own.project import Project
from compllm.build_scripts.own.training import forget, run_training
from compllm.build_scripts.staging import say
from compllm.build_scripts.training.settings import TrainSettings
from compllm.errors import ConfigError, PlanError
from compllm.paths import home_dir
from compllm.plan import PlanLimits, format_plan, parse_plan

ROLES = ("generator", "aggregator")
MIN_PLANS = 20  # fewer teach no form
_LEAST_EXACT = 0.5  # of the held-out examples, where a trained adapter is replaced
_HELD_OUT = 10
_SETS = {
    "generator": ("generator", "generator-more"),
    "aggregator": ("aggregator", "aggregator-more"),
}
_SETTINGS = TrainSettings(
    learning_rate=1e-3,
    epochs=2,
    max_tokens=512,
    num_evaluations=6,
    patience=6,
    validation_tokens=8000,
)

Record = dict[str, Any]


def read_plans(path: Path, limits: PlanLimits) -> list[Record]:
    """Records of a generator's data set, of a file of decompositions.

    A line is `question` with `plan`, the lines of a plan as text, or with `steps` and `parents`,
    which count from 0. Raises ConfigError that names the line.
    """
    found: dict[str, Record] = {}
    for number, record in read_json_lines(path, ("question",)):
        where = f"{path}: line {number}"
        question = text_of(record, "question", where)
        given = record.get("plan", record)
        if given is record and "steps" not in record:
            raise ConfigError(f"{where} has neither 'plan' nor 'steps'")
        try:
            plan = parse_plan(given if isinstance(given, str) else json.dumps(given), limits)
        except PlanError as error:
            raise ConfigError(f"{where}: {error}") from error
        text = format_plan(plan.sub_queries).removesuffix("\n")
        if (known := found.get(question)) is not None and known["plan"] != text:
            raise ConfigError(f"{where}: {question[:60]!r} has another plan in an earlier line")
        found[question] = {"source": "own", "question": question, "plan": text}
    if len(found) < MIN_PLANS:
        raise ConfigError(f"{path} has {len(found)} different plans: give at least {MIN_PLANS}")
    return [{"id": f"own-{place}", **record} for place, record in enumerate(found.values())]


def train_role(
    project: Project,
    role: str,
    plans: Path | None,
    *,
    epochs: float | None,
    max_minutes: float,
    is_yes: bool = False,
) -> str:
    """Train it and put it into the project; returns one sentence on what is served now.

    Raises ConfigError, ArtefactError, and KeyboardInterrupt where a signal stopped the training: a
    run that is started again with the same arguments goes on.
    """
    if plans is None:
        sets = _own_sets(role)
        key = "sets"
    else:
        records = read_plans(plans, project.config.limits.plan)
        key = hashlib.sha256(json.dumps(records).encode()).hexdigest()[:12]
    settings = replace(_SETTINGS, epochs=epochs or _SETTINGS.epochs, max_minutes=max_minutes)
    run = hashlib.sha256(repr((key, settings, str(ensure_base()))).encode()).hexdigest()[:12]
    work = home_dir() / "training" / "own" / f"{role}-{run}"
    work.mkdir(parents=True, exist_ok=True)
    if plans is not None:
        sets = [_written(records, work / "data")]
    say(f"training the {role} for {settings.epochs:g} epochs, {max_minutes:g} minutes at most")
    manifest = run_training(sets, work / role, settings, project.catalogue.template)
    if (best := manifest["best"]) is not None:
        say(f"held-out accuracy: {best['exact']:.0%} written exactly (loss {best['loss']:.4f})")
        _check_worth(project, role, best["exact"], is_yes=is_yes)
    name = f"{role}-{manifest['sha256'][:8]}"
    outcome = install_role(project, role, name, work / role)
    forget(work / role)
    return outcome


def _check_worth(project: Project, role: str, exact: float, *, is_yes: bool) -> None:
    """Raises ConfigError where a trained adapter would be replaced by a much worse one."""
    before = project.catalogue.adapter_of_role(role)
    if before is not None and exact < _LEAST_EXACT and not is_yes:
        raise ConfigError(
            f"it writes {exact:.0%} of the held-out examples exactly, and the project has the "
            f"{role} {before.name}: nothing was changed. Give more plans or more time, or the "
            "same command with --yes, which trains nothing again"
        )


def _own_sets(role: str) -> list[Path]:
    """The folders of the role's sets, made where they are missing."""
    from compllm.build_scripts.datasets.sets import Settings, make_sets
    from compllm.build_scripts.make_datasets import write_sets

    folder = (home_dir() / "datasets").absolute()
    wanted = [folder / name for name in _SETS[role]]
    if not all((each / "train.jsonl").is_file() for each in wanted):
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(
                f"{folder} holds other sets, without {', '.join(_SETS[role])}: remove it, or make "
                "them there with make_datasets.py"
            )
        say("making the data sets, once, in about two minutes")
        settings = Settings()
        files, notes = make_sets(settings)
        write_sets(folder, files, settings, notes, ensure_base())
    return wanted


def _written(records: Sequence[Record], folder: Path) -> Path:
    """A data set of the plans; every tenth is for validation."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    held_out = records[_HELD_OUT - 1 :: _HELD_OUT]
    places = range(len(records))
    trained = [records[n] for n in places if n % _HELD_OUT != _HELD_OUT - 1]
    for split, rows in (("train", trained), ("validation", held_out)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder
