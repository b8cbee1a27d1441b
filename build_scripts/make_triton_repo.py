"""Make a deployable model repository: built engines and the catalogue -> models to serve.

    python build_scripts/make_triton_repo.py        TensorRT-LLM engines of the default place
    python build_scripts/make_triton_repo.py --engines DIR --out DIR --catalogue FILE
    python build_scripts/make_triton_repo.py --embedded ENGINE --out DIR
    python build_scripts/make_triton_repo.py --embedded-template    for maintainers

After build_trtllm.py, in the image and at the paths that serve. What it makes:

    models/tensorrt_llm[_<expert>]/   the engines as upstream's core model
    models/comp_llm/                  the path as a model
    experts.toml compllm.toml         what comp_llm reads; the router's head and other files that
                                      they name are with them
    xgrammar_tokenizer_info.json      for guided decoding
    launch.sh                         serves it
    repository.json                   what it was made from
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compllm import served
from compllm.backends.adapter_files import read_converted
from compllm.backends.tokenizer import Tokenizer
from compllm.build_scripts.repository import core, launch
from compllm.build_scripts.repository.contract import differences
from compllm.build_scripts.repository.guides import FILE as GUIDE_FILE
from compllm.build_scripts.repository.guides import write_tokenizer_info
from compllm.build_scripts.repository.models import core_models
from compllm.build_scripts.repository.settings_files import (
    CATALOGUE,
    SETTINGS,
    write_catalogue,
    write_settings,
)
from compllm.build_scripts.repository.warm_up import WarmUp
from compllm.build_scripts.staging import (
    exclusive,
    run_script,
    say,
    staged_directory,
    write_atomically,
)
from compllm.build_scripts.trtllm.record import ADAPTERS, TOKENIZER, TrtManifest, default_dir
from compllm.catalogue import load_catalogue
from compllm.config import load_config
from compllm.errors import ArtefactError, ConfigError
from compllm.formats.manifest import MANIFEST_FILE, installed_versions, sha256_file
from compllm.paths import home_dir, resource_dir
from compllm.server.triton_files import CORE_MODEL, FACE_MODEL, write_repository

FORMAT = "compllm-repository/1"
RECORD = "repository.json"
MODELS, LAUNCH = "models", "launch.sh"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a repository is made from, at the paths where the server will find it."""

    engines: Path  # as build_trtllm.py made it
    catalogue: Path | None = None  # None: the one that `config` names, else the one shipped
    config: Path | None = None  # settings of comp_llm; None: the defaults
    is_guided: bool = True
    is_warmed: bool = True  # the server asks its engines itself before it is ready


def default_out() -> Path:
    return home_dir() / "repository"


def make_repository(inputs: Inputs, out: Path) -> Path:
    """Make `out` the repository of these engines. Raises ArtefactError, ConfigError; what was there
    stays then."""
    engines, out = inputs.engines.resolve(), out.resolve()
    manifest = TrtManifest.read(engines)
    manifest.verify(engines, is_deep=False)
    named = load_config(inputs.config, environ={}).catalogue
    catalogue = load_catalogue(inputs.catalogue or (Path(named) if named else None))
    guided = core.GuidedDecoding(out / GUIDE_FILE) if inputs.is_guided else None
    models = core_models(manifest, engines, guided)
    _refuse_foreign(out)
    with exclusive(out), staged_directory(out) as made:
        if inputs.is_guided:
            write_tokenizer_info(engines / TOKENIZER, made)
        write_catalogue(catalogue, manifest, engines, made)
        write_settings(inputs.config, manifest, engines, out, made)
        # An empty address: launch.sh fills it in, since it knows the port.
        values = {
            "server_url": "",
            "config_file": str(out / SETTINGS),
            "catalogue": served.summary_of(load_catalogue(made / CATALOGUE)),
        }
        write_repository(made / MODELS, values, [FACE_MODEL])
        warm_up = _warm_up(inputs, engines, made) if inputs.is_warmed else None
        for model in models:
            _write_core(model, made / MODELS, warm_up)
            if launch.mode(models) == "leader":
                # The other ranks take no requests, so they have none of the warm-up's.
                _write_core(model, made / launch.WORKERS, None)
        script = made / LAUNCH
        script.write_text(launch.script(models, engines), encoding="utf-8")
        script.chmod(0o755)
        record = _record(manifest, engines, models)
        (made / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    say(f"repository ready: {out}; serve it with {shlex.quote(str(out / LAUNCH))}")
    return out


def make_embedded(engine: Path, out: Path, *, server_url: str = "127.0.0.1:8001") -> Path:
    """The repository that `compllm up` writes for an embedded engine, to be served by hand."""
    engine, out = engine.resolve(), out.resolve()
    if not (engine / MANIFEST_FILE).is_file():
        raise ArtefactError(f"{engine} is not an embedded engine: build it with build_openvino.py")
    values = {
        "engine_dir": str(engine),
        "tokenizer_dir": str(engine),
        "executor_options": "{}",
        "server_url": server_url,
        "config_file": "",
        "catalogue": "",  # it is that of the environment in which the repository is served
    }
    _refuse_foreign(out)
    with exclusive(out), staged_directory(out) as made:
        write_repository(made / MODELS, values, [CORE_MODEL, FACE_MODEL])
        _check(made / MODELS / CORE_MODEL, is_embedded=True)
        record = {"format": FORMAT, "engines": str(engine), "versions": installed_versions()}
        (made / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    say(f"repository ready: {out}")
    return out


def _warm_up(inputs: Inputs, engines: Path, made: Path) -> WarmUp:
    return WarmUp(
        load_catalogue(made / CATALOGUE),
        load_config(made / SETTINGS, environ={}),
        Tokenizer.from_dir(engines / TOKENIZER),
        lambda task_id: read_converted(engines / ADAPTERS / str(task_id)),
        has_guide=inputs.is_guided,
    )


def _write_core(model: core.CoreModel, models: Path, warm_up: WarmUp | None) -> None:
    folder = models / model.name
    (folder / "1").mkdir(parents=True)  # the C++ backend has no file in it
    config = core.gpu_config(model)
    if warm_up is not None:
        warm_up.add(config, folder, model.lora.adapter_ids if model.lora else ())
    (folder / "config.pbtxt").write_text(core.render(config), encoding="utf-8")
    _check(folder, is_embedded=False)


def _check(folder: Path, *, is_embedded: bool) -> None:
    """Read back what is on disk, as the server will, beside upstream's list."""
    path = folder / "config.pbtxt"
    config = core.parse(path.read_text(encoding="utf-8"))
    found = differences(config, is_embedded=is_embedded)
    if config.name != folder.name:
        found.append(f"it is named {config.name}, its folder {folder.name}")
    if found:
        raise ArtefactError(f"{path} is not upstream's core model: {'; '.join(found)}")


def _record(
    manifest: TrtManifest, engines: Path, models: tuple[core.CoreModel, ...]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "engines": str(engines),
        "engines_sha256": sha256_file(engines / MANIFEST_FILE),
        "topology": manifest.topology,
        "image": manifest.image,
        "versions": {**manifest.versions, "compllm": installed_versions()["compllm"]},
        "launch": launch.mode(models),
        "models": {
            model.name: {
                "gpus": list(model.gpu_ids),
                "kv_tokens": model.kv_tokens,
                "kv_fraction": model.kv_fraction,
                "lora_fraction": model.lora.gpu_fraction if model.lora else None,
            }
            for model in models
        },
    }


def _refuse_foreign(out: Path) -> None:
    """Never replace a directory that this script did not make."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give a directory for the repository")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise ConfigError(f"{out} holds other files and is not replaced: give an empty directory")


def write_embedded_template() -> Path:
    """triton_repo/tensorrt_llm/config.pbtxt of a checkout, made anew."""
    path = resource_dir("triton_repo") / CORE_MODEL / "config.pbtxt"
    write_atomically(path, core.embedded_template())
    return path


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make a deployable Triton model repository.")
    parser.add_argument("--engines", type=Path, metavar="DIR", help="what build_trtllm.py made")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the repository; default: the cache"
    )
    parser.add_argument(
        "--catalogue", type=Path, metavar="FILE", help="default: that of --config, else the shipped"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of comp_llm, as TOML")
    parser.add_argument("--no-guided", action="store_true", help="without guided decoding")
    parser.add_argument("--no-warm-up", action="store_true", help="ready without first requests")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--embedded", type=Path, metavar="ENGINE", help="of an embedded engine")
    other.add_argument("--embedded-template", action="store_true", help="for maintainers")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)

    def run() -> None:
        if args.embedded_template:
            print(write_embedded_template())
        elif args.embedded is not None:
            print(make_embedded(args.embedded, args.out or default_out()))
        else:
            inputs = Inputs(
                args.engines or default_dir(),
                args.catalogue,
                args.config,
                is_guided=not args.no_guided,
                is_warmed=not args.no_warm_up,
            )
            print(make_repository(inputs, args.out or default_out()))

    return run_script(run)


if __name__ == "__main__":
    sys.exit(main())
