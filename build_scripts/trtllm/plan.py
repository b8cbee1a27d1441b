"""Catalogue and settings -> which engines are built, from what, and where they run.

Everything that can be known without TensorRT-LLM is decided and refused here: missing adapters,
ranks, bases that do not match, settings that contradict each other, too little memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compllm import catalogue as catalogues
from compllm.build_scripts.manifest import base_key, weights_sha256
from compllm.build_scripts.trtllm.adapters import check_ranks, target_modules
from compllm.build_scripts.trtllm.legacy_form import CONVERTIBLE, Rope
from compllm.build_scripts.trtllm.memory import Load, LoraNeed, Share, fit
from compllm.build_scripts.trtllm.rules import check_rules, is_calibrated
from compllm.build_scripts.trtllm.settings import EngineSettings, GpuSettings
from compllm.catalogue import Catalogue
from compllm.errors import ArtefactError
from compllm.formats.adapters import Adapter, read_peft
from compllm.formats.checkpoint import validate_checkpoint
from compllm.formats.json_files import read_json
from compllm.formats.shape import BaseShape
from compllm.paths import resource_dir
from compllm.types import Expert

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a folder and a Triton model


@dataclass(frozen=True, slots=True)
class Source:
    """A Hugging Face checkpoint that engines are made from."""

    directory: Path
    shape: BaseShape  # with the hash of its weights
    is_qwen: bool
    max_positions: int
    rope: Rope
    key: str  # hash over everything in it that an engine depends on


@dataclass(frozen=True, slots=True)
class PlannedAdapter:
    """An adapter of the catalogue, read and validated."""

    adapter: Adapter
    directory: Path  # PEFT, as the user has it


@dataclass(frozen=True, slots=True)
class PlannedEngine:
    """One engine to build."""

    name: str  # of its directory and of its Triton model
    expert: str  # "base" or the expert's name
    source: Source
    merged: PlannedAdapter | None  # goes into the weights before the conversion
    lora: LoraNeed | None  # None: without the plug-in
    settings: EngineSettings
    devices: tuple[int, ...]  # GPUs it runs on, one for each rank
    share: Share


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """All that one run builds."""

    settings: GpuSettings
    base: Source
    engines: tuple[PlannedEngine, ...]  # the base's first
    adapters: tuple[PlannedAdapter, ...]  # served by the base's engine as LoRA


@dataclass(frozen=True, slots=True)
class _Draft:
    """An engine before it is known where it runs."""

    name: str
    expert: str
    source: Source
    merged: PlannedAdapter | None = None
    lora: LoraNeed | None = None


def make_plan(catalogue: Catalogue, settings: GpuSettings, checkpoint: Path) -> BuildPlan:
    """The plan for this base checkpoint. Raises ArtefactError or ConfigError, one line each."""
    base = _read_source(checkpoint)
    adapters = tuple(_read_adapter(adapter, base) for adapter in catalogue.adapters)
    drafts, served = _drafts(catalogue, settings, base, {a.adapter.name: a for a in adapters})
    for planned in served:
        check_ranks(planned.adapter, base.shape, settings.lora.max_rank)
    if served and settings.engine.dtype != "float16":
        raise ArtefactError(
            f"engine.dtype = {settings.engine.dtype!r}: adapters travel as float16, "
            "and the engine must have their type: use 'float16'"
        )
    drafts[0] = replace(drafts[0], lora=_lora_need(settings, served))
    engine = _limit_length(settings, drafts)
    for draft in drafts:
        own = settings.engine_for(engine, has_adapters=draft.lora is not None)
        _check_calibration(own)
        check_rules(draft.source.shape, own, settings.gpu, settings.num_gpus)
    if served and engine.kv_cache_type != "paged":
        raise ArtefactError(
            f"kv_cache_type {engine.kv_cache_type!r}: adapters mix in an in-flight batch, "
            "which needs 'paged'"
        )
    return BuildPlan(settings, base, _place(settings, engine, drafts), served)


def _drafts(
    catalogue: Catalogue,
    settings: GpuSettings,
    base: Source,
    adapters: dict[str, PlannedAdapter],
) -> tuple[list[_Draft], tuple[PlannedAdapter, ...]]:
    """The engines of this topology, the base's first, and the adapters that stay adapters."""
    drafts = [_Draft(catalogue.base.model, "base", base)]
    names = {expert.name for expert in catalogue.experts}
    for name in settings.checkpoints:
        if settings.topology == "shared":
            raise ArtefactError(
                f"{settings.path}: experts.{name}.checkpoint is a model of its own: it needs "
                "topology = 'per-expert'"
            )
        if name not in names:
            raise ArtefactError(
                f"{settings.path}: experts.{name} is no expert of {catalogue.path}: there are "
                + (", ".join(sorted(names)) or "none")
            )
    if settings.topology == "shared":
        return drafts, tuple(adapters.values())
    taken = set()
    for expert in catalogue.experts:
        model = _model_name(expert, catalogue)
        if expert.name in settings.checkpoints:
            source = _read_source(settings.checkpoints[expert.name])
            _check_tokenizer(expert.name, source, base)
            drafts.append(_Draft(model, expert.name, source))
        elif expert.adapter is not None:
            drafts.append(_Draft(model, expert.name, base, adapters[expert.adapter]))
        taken.add(expert.adapter)
    _check_names(drafts)
    # What no expert took, the generator's adapter for one, is served by the base's engine.
    return drafts, tuple(each for name, each in adapters.items() if name not in taken)


def _check_names(drafts: Sequence[_Draft]) -> None:
    seen: set[str] = set()
    for draft in drafts:
        if draft.name in seen or not _NAME.fullmatch(draft.name):
            raise ArtefactError(
                f"expert {draft.expert}: its model {draft.name!r} must be a name of letters, "
                "digits, '.', '_' and '-' that no other engine has"
            )
        seen.add(draft.name)


def _model_name(expert: Expert, catalogue: Catalogue) -> str:
    own = expert.model != catalogue.base.model
    return expert.model if own else f"{catalogue.base.model}_{expert.name}"


def _read_source(directory: Path) -> Source:
    shape = validate_checkpoint(directory, CONVERTIBLE)
    config = read_json(directory / "config.json")
    sha256 = weights_sha256(directory)
    positions = config.get("max_position_embeddings")
    if type(positions) is not int or positions < 1:
        raise ArtefactError(f"{directory}/config.json: max_position_embeddings is {positions!r}")
    return Source(
        directory=directory.resolve(),
        shape=replace(shape, sha256=sha256),
        is_qwen=config["architectures"][0].startswith("Qwen"),
        max_positions=positions,
        rope=Rope.from_config(config, f"{directory}/config.json"),
        key=base_key(directory, sha256),
    )


def _read_adapter(listed: catalogues.Adapter, base: Source) -> PlannedAdapter:
    directory = listed.path or resource_dir("engines") / "adapters" / listed.name
    adapter = read_peft(directory, base.shape, listed.name, is_same_base=listed.is_same_base)
    if listed.id != adapter.task_id:
        raise ArtefactError(
            f"adapter {listed.name}: the catalogue's id is {listed.id}, its content gives "
            f"{adapter.task_id}: the adapter has changed, set adapters.{listed.name}.id to that"
        )
    return PlannedAdapter(adapter, directory.resolve())


def _check_tokenizer(expert: str, source: Source, base: Source) -> None:
    """One tokenizer serves all engines: the ids must mean the same everywhere."""

    def vocabulary(directory: Path) -> tuple[object, object]:
        value = read_json(directory / "tokenizer.json")
        return value.get("model"), value.get("added_tokens")

    if vocabulary(source.directory) != vocabulary(base.directory):
        raise ArtefactError(
            f"expert {expert}: the tokenizer of {source.directory} is not the base's "
            f"({base.directory}): fine-tune from that base, without new tokens"
        )


def _lora_need(settings: GpuSettings, served: Sequence[PlannedAdapter]) -> LoraNeed | None:
    if not served:
        return None
    found = [planned.adapter for planned in served]
    return LoraNeed(
        modules=target_modules(found),
        max_rank=settings.lora.max_rank or max(adapter.rank for adapter in found),
        num_adapters=len(found),
        gpu_adapters=min(settings.lora.gpu_adapters or len(found), len(found)),
    )


def _limit_length(settings: GpuSettings, drafts: Sequence[_Draft]) -> EngineSettings:
    """A default length bends to the models, a length that the user wrote does not."""
    shortest = min(drafts, key=lambda draft: draft.source.max_positions).source
    if settings.engine.max_seq_len <= shortest.max_positions:
        return settings.engine
    if "max_seq_len" in settings.explicit:
        raise ArtefactError(
            f"engine.max_seq_len = {settings.engine.max_seq_len}: {shortest.shape.name} was made "
            f"for {shortest.max_positions} positions"
        )
    return replace(settings.engine, max_seq_len=shortest.max_positions)


def _check_calibration(engine: EngineSettings) -> None:
    """A folder is looked for now; a data set's name is the image's business, and its network's."""
    folder = Path(engine.calib_dataset)
    if is_calibrated(engine) and folder.is_absolute() and not folder.is_dir():
        raise ArtefactError(
            f"engine.calib_dataset = {engine.calib_dataset!r} is not a directory: give one with a "
            "'train' split and a 'text' column, or the name of a data set"
        )


def _place(
    settings: GpuSettings, engine: EngineSettings, drafts: Sequence[_Draft]
) -> tuple[PlannedEngine, ...]:
    """Each engine on a set of GPUs of its own as long as there are any, then round again."""
    size = engine.world_size
    num_sets = settings.num_gpus // size
    placed: dict[str, PlannedEngine] = {}
    for number in range(min(num_sets, len(drafts))):
        here = drafts[number::num_sets]
        is_fp8 = settings.engine_for(engine, has_adapters=False) != engine
        load = Load(engine, tuple((draft.source.shape, draft.lora) for draft in here), is_fp8)
        shares = fit(load, settings.gpu, settings.num_gpus, settings.gpus)
        devices = tuple(range(number * size, (number + 1) * size))
        for draft, share in zip(here, shares, strict=True):
            placed[draft.name] = PlannedEngine(
                draft.name,
                draft.expert,
                draft.source,
                draft.merged,
                draft.lora,
                settings.engine_for(engine, has_adapters=draft.lora is not None),
                devices,
                share,
            )
    return tuple(placed[draft.name] for draft in drafts)
