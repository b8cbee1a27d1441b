"""Directories of TensorRT-LLM engines as build_trtllm.py leaves them, for what reads them: real
manifest, tokenizer and adapters; in the place of an engine's weights a few bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from compllm.build_scripts.manifest import file_entries
from compllm.build_scripts.trtllm.legacy_form import Rope
from compllm.build_scripts.trtllm.memory import LoraNeed, engine_memory
from compllm.build_scripts.trtllm.plan import make_plan
from compllm.build_scripts.trtllm.record import AdapterEntry, EngineEntry, TrtManifest
from compllm.build_scripts.trtllm.settings import (
    EngineSettings,
    Topology,
    default_settings_path,
    load_settings,
)
from compllm.catalogue import load_catalogue
from compllm.formats.checkpoint import validate_checkpoint
from compllm.formats.shape import BaseShape

VERSION = "1.2.1"
CATALOGUE = """
out_of_domain = ["Who painted the Mona Lisa?"]

[base]
domain = "anything"
system = "You answer \\"short\\" questions."

[adapters]
chemistry = { id = 11, path = "adapters/chemistry" }
biology = { id = 12 }

[router]
threshold = 0.5
encoder = "sha256:0"

[[experts]]
name = "chemistry"
domain = "chemistry"
system = "You are a chemist."
adapter = "chemistry"
examples = ["What is iron?"]

[[experts]]
name = "biology"
domain = "biology"
system = "You are a biologist."
adapter = "biology"
examples = ["What is a cell?"]
"""


def write_catalogue(directory: Path) -> Path:
    path = directory / "experts.toml"
    path.write_text(CATALOGUE, encoding="utf-8")
    return path


def engine_entry(
    shape: BaseShape,
    name: str = "tensorrt_llm",
    expert: str = "base",
    devices: tuple[int, ...] = (0,),
    *,
    max_lora_rank: int = 0,
    settings: EngineSettings | None = None,
    kv_tokens: int = 40_960,
) -> EngineEntry:
    settings = settings or EngineSettings(tp=len(devices))
    modules = ("attn_q", "attn_k", "attn_v") if max_lora_rank else ()
    need = LoraNeed(modules, max_lora_rank, 2, 2) if max_lora_rank else None
    return EngineEntry(
        name=name,
        expert=expert,
        key=f"key-{name}",
        devices=devices,
        settings=asdict(settings),
        rope=asdict(Rope(10000.0)),
        lora_modules=modules,
        max_lora_rank=max_lora_rank,
        commands=(f"trtllm-build --output_dir {name}",),
        memory=asdict(engine_memory(shape, settings, need)),
        kv_tokens=kv_tokens,
        kv_fraction=0.85,
        lora_fraction=0.4 if max_lora_rank else 0.0,
    )


def write_engines(
    directory: Path,
    tokenizer: Path,
    entries: Sequence[EngineEntry],
    adapters: Sequence[AdapterEntry] = (),
    **more: Any,
) -> TrtManifest:
    for entry in entries:
        _write_engine(directory / entry.name, entry)
    for adapter in adapters:
        folder = directory / "adapters" / str(adapter.task_id)
        folder.mkdir(parents=True)
        np.save(folder / "model.lora_weights.npy", np.zeros((1, 3, 8), np.float16))
        np.save(folder / "model.lora_config.npy", np.zeros((1, 3, 4), np.int32))
    (directory / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, directory / "tokenizer" / name)
    names = [p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()]
    manifest = TrtManifest(
        topology="per-expert" if len(entries) > 1 else "shared",
        image="26.07-trtllm-python-py3",
        versions={
            "compllm": "0.1.0",
            "tensorrt_llm": VERSION,
            "tensorrt": "10.14.1.48",
            "triton": "2.70.0",
        },
        gpu="NVIDIA H100 80GB HBM3",
        compute_capability="9.0",
        num_gpus=1 + max(max(entry.devices) for entry in entries),
        base_name="tiny",
        base_sha256="0" * 64,
        engines=tuple(entries),
        adapters=tuple(adapters),
        files=file_entries(directory, names),
    )
    manifest = replace(manifest, **more)
    manifest.write(directory)
    return manifest


def write_shipped_engines(directory: Path, base: Path, topology: Topology) -> TrtManifest:
    """What build_trtllm.py leaves for the shipped catalogue and the shipped gpu.toml."""
    settings = load_settings(default_settings_path(), topology=topology)
    plan = make_plan(load_catalogue(), settings, base)
    entries = [
        engine_entry(
            each.source.shape,
            each.name,
            each.expert,
            each.devices,
            max_lora_rank=each.lora.max_rank if each.lora else 0,
            settings=each.settings,
            kv_tokens=each.share.kv_tokens,
        )
        for each in plan.engines
    ]
    adapters = [
        AdapterEntry(each.adapter.name, each.adapter.task_id, each.adapter.rank, "0" * 64)
        for each in plan.adapters
    ]
    return write_engines(directory, base, entries, adapters)


def _write_engine(folder: Path, entry: EngineEntry) -> None:
    folder.mkdir(parents=True)
    settings = entry.settings
    limits = {key: settings[key] for key in ("max_batch_size", "max_num_tokens", "max_seq_len")}
    world_size = settings["tp"] * settings["pp"]
    config = {
        "version": VERSION,
        "pretrained_config": {
            "mapping": {"world_size": world_size},
            "rotary_base": entry.rope["theta"],
        },
        "build_config": {**limits, "lora_config": {"max_lora_rank": entry.max_lora_rank}},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for rank in range(world_size):
        (folder / f"rank{rank}.engine").write_bytes(b"not an engine")


ADAPTERS = (AdapterEntry("chemistry", 11, 8, "a"), AdapterEntry("biology", 12, 16, "b"))


def expert_entries(checkpoint: Path, *devices: tuple[int, ...]) -> list[Any]:
    """Engines of the base, of chemistry and of biology on these GPUs."""
    shape = validate_checkpoint(checkpoint)
    names = (("tensorrt_llm", "base"), ("tensorrt_llm_chemistry", "chemistry"))
    names = (*names, ("tensorrt_llm_biology", "biology"))
    return [
        engine_entry(shape, name, expert, gpus)
        for (name, expert), gpus in zip(names, devices, strict=True)
    ]
