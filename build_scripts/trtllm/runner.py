"""The steps of a build: what is done is kept, what is half-done never seen.

Each step writes beside its place in `<out>.work` and is renamed into it with a record of its
inputs, so a second run continues where the first ended, and a changed input repeats what depends on
it. `<out>` itself is replaced as a whole at the end, by links to what the steps made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from compllm.build_scripts.manifest import copied_files, file_entries
from compllm.build_scripts.staging import (
    exclusive,
    recover,
    require_free_space,
    saving,
    say,
    staged_directory,
)
from compllm.build_scripts.trtllm.adapters import check_converted, write_prepared
from compllm.build_scripts.trtllm.commands import (
    Command,
    build_command,
    convert_command,
    lora_command,
    merge_command,
)
from compllm.build_scripts.trtllm.image import EXAMPLES, Environment
from compllm.build_scripts.trtllm.legacy_form import write_legacy
from compllm.build_scripts.trtllm.plan import BuildPlan, PlannedAdapter, PlannedEngine
from compllm.build_scripts.trtllm.process import run
from compllm.build_scripts.trtllm.record import (
    ADAPTERS,
    TOKENIZER,
    AdapterEntry,
    EngineEntry,
    TrtManifest,
    check_engine,
)
from compllm.errors import ArtefactError
from compllm.formats.json_files import read_json
from compllm.formats.manifest import MANIFEST_FILE, installed_versions
from compllm.formats.tokenizer_files import OPTIONAL_TOKENIZER_FILES, TOKENIZER_FILES

_STEP = "step.json"  # in a step's directory: the key of its inputs and the size of each file
_ENGINE_FILES = ("config.json", "*.engine", "*.safetensors", "quant_cfg.json")


@dataclass(frozen=True, slots=True)
class Places:
    """Where the steps of a build stand."""

    out: Path
    examples: Path = EXAMPLES

    @property
    def work(self) -> Path:
        return self.out.with_name(self.out.name + ".work")

    def step(self, kind: str, name: str) -> Path:
        return self.work / kind / name


def partial(target: Path) -> Path:
    """Where a step writes before it is renamed; see `staging.staged_directory`."""
    return target.with_name(target.name + ".partial")


def engine_commands(engine: PlannedEngine, places: Places) -> tuple[Command, ...]:
    """What builds this engine, in order."""
    checkpoint, commands = places.step("legacy", engine.name), []
    if engine.merged is not None:
        merged = places.step("merged", engine.name)
        commands.append(merge_command(engine, engine.merged.directory, partial(merged)))
        checkpoint = merged
    converted = places.step("converted", engine.name)
    commands.append(convert_command(engine, checkpoint, partial(converted), places.examples))
    commands.append(build_command(engine, converted, partial(places.step("engines", engine.name))))
    return tuple(commands)


def adapter_command(planned: PlannedAdapter, places: Places) -> Command:
    """What converts this adapter."""
    name = str(planned.adapter.task_id)
    target = partial(places.step(ADAPTERS, name))
    return lora_command(places.step("prepared", name), target, places.examples)


def build(
    plan: BuildPlan, environment: Environment, out: Path, examples: Path = EXAMPLES
) -> TrtManifest:
    """Make `out` the engines of this plan. Does only what is missing. Raises ArtefactError."""
    _check_gpus(plan, environment)
    out = out.resolve()
    _refuse_foreign(out)
    versions = {
        "compllm": installed_versions()["compllm"],
        "tensorrt_llm": environment.tensorrt_llm,
        "tensorrt": environment.tensorrt,
        "triton": environment.release,
    }
    run_ = _Run(plan, environment, Places(out, examples), versions)
    with exclusive(out):
        recover(out)
        manifest = run_.build()
    say(f"engines ready: {out}")
    return manifest


@dataclass(slots=True)
class _Run:
    """One build, under the lock of its directory."""

    plan: BuildPlan
    environment: Environment
    places: Places
    versions: dict[str, str]
    _old: TrtManifest | None = field(init=False, default=None)

    def build(self) -> TrtManifest:
        self._old = _reusable(self.places.out)
        entries = tuple(self._entry(engine) for engine in self.plan.engines)
        if self._old is not None and self._is_same(self._old, entries):
            say("nothing to do: the engines are up to date")
            return self._old
        self._check_space()
        self.places.work.mkdir(parents=True, exist_ok=True)
        for engine, entry in zip(self.plan.engines, entries, strict=True):
            self._engine(engine, entry)
        for planned in self.plan.adapters:
            self._adapter(planned)
        manifest = self._finish(entries)
        shutil.rmtree(self.places.work)
        return manifest

    def _is_same(self, old: TrtManifest, entries: tuple[EngineEntry, ...]) -> bool:
        """Devices and shares may change without a build, the manifest then must."""
        ids = [planned.adapter.task_id for planned in self.plan.adapters]
        return (
            old.engines == entries
            and [adapter.task_id for adapter in old.adapters] == ids
            and old.num_gpus == self.plan.settings.num_gpus
            and old.image == self.plan.settings.image
        )

    def _entry(self, engine: PlannedEngine) -> EngineEntry:
        commands = tuple(map(str, engine_commands(engine, self.places)))
        lora, share = engine.lora, engine.share
        # What the paths in the commands stand for decides, not the paths.
        inputs = {
            "source": engine.source.key,
            "merged": engine.merged.adapter.sha256 if engine.merged else "",
            "settings": asdict(engine.settings),
            "rope": asdict(engine.source.rope),
            "lora": [lora.modules, lora.max_rank] if lora else [],
            "versions": {k: v for k, v in self.versions.items() if k.startswith("tensorrt")},
            "compute_capability": self.plan.settings.gpu.compute_capability,
        }
        return EngineEntry(
            name=engine.name,
            expert=engine.expert,
            key=hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest(),
            devices=engine.devices,
            settings=asdict(engine.settings),
            rope=asdict(engine.source.rope),
            lora_modules=lora.modules if lora else (),
            max_lora_rank=lora.max_rank if lora else 0,
            commands=commands,
            memory=asdict(share.memory),
            kv_tokens=share.kv_tokens,
            kv_fraction=share.kv_fraction,
            lora_fraction=share.lora_fraction,
        )

    def _check_space(self) -> None:
        """Merged and converted checkpoints stand one at a time, engines together."""
        sizes = [
            engine.share.memory.weights * engine.settings.world_size for engine in self.plan.engines
        ]
        doing = "building the engines"
        require_free_space(self.places.out, sum(sizes) + 2 * max(sizes), doing)

    def _engine(self, engine: PlannedEngine, entry: EngineEntry) -> None:
        target = self.places.step("engines", engine.name)
        if _is_done(target, entry.key):
            say(f"{engine.name}: built already")
            return
        if self._take_over(target, entry):
            say(f"{engine.name}: unchanged, taken over")
            return
        legacy = self.places.step("legacy", engine.name)
        with staged_directory(legacy) as made, saving("linking the checkpoint", made):
            write_legacy(engine.source.directory, made)
        *before, last = engine_commands(engine, self.places)
        for command in before:
            kind = "merged" if command.tool == "merge" else "converted"
            step = self.places.step(kind, engine.name)
            self._step(step, entry.key, command, lambda _: None)
        self._step(
            target,
            entry.key,
            last,
            lambda made: check_engine(made, entry, self.versions),
        )
        for kind in ("legacy", "merged", "converted"):  # as large as the engine, and of no more use
            shutil.rmtree(self.places.step(kind, engine.name), ignore_errors=True)

    def _take_over(self, target: Path, entry: EngineEntry) -> bool:
        """Link an engine of the directory that is there, when it is the same one."""
        old = self._old.engines if self._old is not None else ()
        if not any((each.name, each.key) == (entry.name, entry.key) for each in old):
            return False
        with staged_directory(target) as made:
            _link_engine(self.places.out / entry.name, made)
            _mark(made, entry.key)
        return True

    def _adapter(self, planned: PlannedAdapter) -> None:
        adapter = planned.adapter
        name = str(adapter.task_id)
        target, prepared = self.places.step(ADAPTERS, name), self.places.step("prepared", name)
        key = adapter.sha256 + self.versions["tensorrt_llm"]
        if _is_done(target, key):
            return
        with staged_directory(prepared) as made, saving("preparing the adapter", made):
            write_prepared(adapter, made)
        command = adapter_command(planned, self.places)
        self._step(target, key, command, lambda made: check_converted(adapter, made))
        shutil.rmtree(prepared)

    def _step(
        self, target: Path, key: str, command: Command, check: Callable[[Path], None]
    ) -> None:
        """Run a command that fills `target`, unless it has done so with the same inputs."""
        if _is_done(target, key):
            say(f"{target.parent.name}/{target.name}: done already")
            return
        log = self.places.work / "logs" / f"{command.tool}-{target.name}.log"
        say(f"{target.parent.name}/{target.name}: {command.label}, log in {log}")
        with staged_directory(target) as made:
            run(command, log, self.places.work)
            check(made)
            _mark(made, key)

    def _finish(self, entries: tuple[EngineEntry, ...]) -> TrtManifest:
        """The whole directory, in one rename."""
        plan = self.plan
        with staged_directory(self.places.out) as made:
            for entry in entries:
                (made / entry.name).mkdir()
                _link_engine(self.places.step("engines", entry.name), made / entry.name)
            (made / ADAPTERS).mkdir()
            for planned in plan.adapters:
                name = str(planned.adapter.task_id)
                (made / ADAPTERS / name).mkdir()
                for path in self.places.step(ADAPTERS, name).glob("*.npy"):
                    _link(path, made / ADAPTERS / name / path.name)
            _copy_tokenizer(plan.base.directory, made / TOKENIZER)
            names = [
                path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()
            ]
            manifest = TrtManifest(
                topology=plan.settings.topology,
                image=plan.settings.image,
                versions=self.versions,
                gpu=self.environment.gpus[0].name,
                compute_capability=plan.settings.gpu.compute_capability,
                num_gpus=plan.settings.num_gpus,
                base_name=plan.base.shape.name,
                base_sha256=plan.base.shape.sha256,
                engines=entries,
                adapters=tuple(
                    AdapterEntry(a.name, a.task_id, a.rank, a.sha256)
                    for a in (planned.adapter for planned in plan.adapters)
                ),
                files=file_entries(made, names),
            )
            manifest.write(made)
        return manifest


def _check_gpus(plan: BuildPlan, environment: Environment) -> None:
    gpu = plan.settings.gpu
    for seen in environment.gpus:
        if seen.compute_capability != gpu.compute_capability:
            raise ArtefactError(
                f"GPU {seen.index} is {seen.name} (compute capability {seen.compute_capability}), "
                f"the plan is for {gpu.label} ({gpu.compute_capability}): "
                "name its kind with --gpu, or hide it with CUDA_VISIBLE_DEVICES"
            )
        if seen.memory_mib < gpu.memory_gib * 1024 * 0.98:
            raise ArtefactError(
                f"GPU {seen.index} is {seen.name} with {seen.memory_mib / 1024:.1f} GiB, the plan "
                f"counts on {gpu.memory_gib} ({gpu.name}): name its kind with --gpu"
            )


def _reusable(out: Path) -> TrtManifest | None:
    """What is there, when it is whole; None makes every engine be built."""
    if not (out / MANIFEST_FILE).is_file():
        return None
    try:
        manifest = TrtManifest.read(out)
        manifest.verify(out)
    except ArtefactError as error:
        say(f"building anew: {error}")
        return None
    return manifest


def _refuse_foreign(out: Path) -> None:
    """Never replace a directory that this script did not make."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ArtefactError(f"{out} is a file: give a directory for the engines")
    if not any(out.iterdir()):
        return
    path = out / MANIFEST_FILE
    form = str(read_json(path).get("format")) if path.is_file() else ""
    if not form.startswith("compllm-trtllm/"):
        raise ArtefactError(f"{out} holds other files and is not replaced: give an empty directory")


def _is_done(target: Path, key: str) -> bool:
    """The step's directory is there, of these inputs, with every file in its size."""
    try:
        record = read_json(target / _STEP)
        sizes = {name: (target / name).stat().st_size for name in record["sizes"]}
    except (ArtefactError, OSError, KeyError, TypeError):
        return False
    return bool(record.get("key") == key and record["sizes"] == sizes)


def _mark(made: Path, key: str) -> None:
    sizes = {
        path.relative_to(made).as_posix(): path.stat().st_size
        for path in made.rglob("*")
        if path.is_file()
    }
    text = json.dumps({"key": key, "sizes": sizes}, indent=2)
    (made / _STEP).write_text(text + "\n", encoding="utf-8")


def _link_engine(source: Path, target: Path) -> None:
    for pattern in _ENGINE_FILES:
        for path in source.glob(pattern):
            _link(path, target / path.name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _copy_tokenizer(checkpoint: Path, target: Path) -> None:
    target.mkdir()
    wanted = (*TOKENIZER_FILES, *OPTIONAL_TOKENIZER_FILES, "config.json")
    for name in copied_files(checkpoint):
        if name in wanted:
            shutil.copyfile(checkpoint / name, target / name)
