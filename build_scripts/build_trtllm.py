"""Build TensorRT-LLM engines of the catalogue, inside the pinned Triton image.

    python build_scripts/build_trtllm.py --dry-run                   what would be run and written
    python build_scripts/build_trtllm.py                             build, or continue a build
    python build_scripts/build_trtllm.py --gpu l4 --topology per-expert --checkpoint DIR --out DIR
    python build_scripts/build_trtllm.py --check DIR                 do these engines run here?

engines/gpu.toml says which engines, for which GPU and within which limits; engines/experts.toml
names the adapters. --dry-run needs neither the image nor a GPU, and downloads nothing. The parts
are in build_scripts/trtllm/; make_triton_repo.py takes the result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from compllm.build_scripts.fetch_base import ensure_base, fetched_base
from compllm.build_scripts.staging import run_script
from compllm.build_scripts.trtllm.image import EXAMPLES, find_image, inspect, look
from compllm.build_scripts.trtllm.memory import GIB
from compllm.build_scripts.trtllm.plan import BuildPlan, make_plan
from compllm.build_scripts.trtllm.record import TrtManifest, default_dir
from compllm.build_scripts.trtllm.rules import warnings
from compllm.build_scripts.trtllm.runner import Places, adapter_command, build, engine_commands
from compllm.build_scripts.trtllm.settings import load_settings
from compllm.catalogue import load_catalogue


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build TensorRT-LLM engines of the catalogue.")
    parser.add_argument("--catalogue", type=Path, metavar="FILE", help="default: experts.toml")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="default: gpu.toml")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: the fetched base")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: in the cache")
    parser.add_argument("--gpu", metavar="NAME", help="a kind of GPU of the settings")
    parser.add_argument("--num-gpus", type=int, metavar="N")
    parser.add_argument("--topology", choices=("shared", "per-expert"))
    parser.add_argument("--examples", type=Path, default=EXAMPLES, metavar="DIR")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--dry-run", action="store_true", help="print commands and files only")
    choice.add_argument("--check", type=Path, metavar="DIR", help="do these engines run here?")
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.check is not None:
            check(options.check)
            return
        settings = load_settings(
            options.settings,
            gpu=options.gpu,
            topology=options.topology,
            num_gpus=options.num_gpus,
        )
        out = (options.out or default_dir()).resolve()
        # The wrong place is reported before the checkpoint is read, which takes a while.
        environment = (
            None if options.dry_run else inspect(find_image(settings.image), options.examples)
        )
        catalogue = load_catalogue(options.catalogue)
        base = options.checkpoint or (fetched_base() if options.dry_run else ensure_base())
        plan = make_plan(catalogue, settings, base)
        describe(plan)
        if environment is None:
            show(plan, Places(out, options.examples))
        else:
            build(plan, environment, out, options.examples)

    return run_script(work)


def check(directory: Path) -> None:
    """Raises ArtefactError unless the engines are whole and run in this image, on this GPU."""
    manifest = TrtManifest.read(directory)
    manifest.verify(directory)
    manifest.check_serving(look())
    print(f"{directory}: {len(manifest.engines)} engines fit this image and GPU")


def describe(plan: BuildPlan) -> None:
    """Each engine and the memory it takes, on stdout."""
    settings = plan.settings
    print(f"image     tritonserver:{settings.image}")
    print(f"GPU       {settings.num_gpus} x {settings.gpu.label}, {settings.topology} topology")
    for engine in plan.engines:
        memory, own = engine.share.memory, engine.settings
        print(
            f"engine    {engine.name}: {own.dtype}, quantisation {own.quantisation}, tp {own.tp}, "
            f"pp {own.pp}, GPUs {','.join(map(str, engine.devices))}"
        )
        print(
            f"          weights {memory.weights / GIB:.2f} GiB, KV cache {engine.share.kv_tokens} "
            f"tokens of {memory.kv_per_token} bytes, LoRA cache {memory.lora_gpu / GIB:.2f} GiB, "
            f"activations about {memory.activations / GIB:.2f} GiB"
        )
        if engine.lora is not None:
            modules = " ".join(engine.lora.modules)
            print(f"          LoRA rank up to {engine.lora.max_rank} on {modules}")
        for told in warnings(own, engine.lora is not None):
            print(f"warning   {told}")
    for planned in plan.adapters:
        adapter = planned.adapter
        print(f"adapter   {adapter.name}: rank {adapter.rank}, lora_task_id {adapter.task_id}")


def show(plan: BuildPlan, places: Places) -> None:
    """The exact commands in order, and every file of the result."""
    for engine in plan.engines:
        for command in engine_commands(engine, places):
            print(f"run       {command}")
    for planned in plan.adapters:
        print(f"run       {adapter_command(planned, places)}")
    for engine in plan.engines:
        folder = places.out / engine.name
        ranks = (f"rank{rank}.engine" for rank in range(engine.settings.world_size))
        for name in ("config.json", *ranks):
            print(f"file      {folder / name}")
    for planned in plan.adapters:
        folder = places.out / "adapters" / str(planned.adapter.task_id)
        for name in ("model.lora_weights.npy", "model.lora_config.npy"):
            print(f"file      {folder / name}")
    print(f"file      {places.out / 'tokenizer' / 'tokenizer.json'}")
    print(f"file      {places.out / 'manifest.json'}")


if __name__ == "__main__":
    sys.exit(main())
