"""Engines that are not whole, or not of this image and GPU, are refused by their manifest."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from helpers import rewrite_json
from trtllm_plans import planned_engine

from compllm.build_scripts.manifest import file_entries
from compllm.build_scripts.trtllm.image import Environment, SeenGpu
from compllm.build_scripts.trtllm.record import AdapterEntry, EngineEntry, TrtManifest
from compllm.errors import ArtefactError

H100 = SeenGpu(0, "NVIDIA H100 80GB HBM3", "9.0", 81559, "590.44.01")
SERVING = Environment("1.2.1", "10.14.1.48", "26.07", (H100, replace(H100, index=1)))


def finished(directory: Path) -> TrtManifest:
    """A directory of one engine of two ranks, as the runner leaves it."""
    engine = planned_engine(tp=2)
    folder = directory / engine.name
    folder.mkdir(parents=True)
    limits = ("max_batch_size", "max_num_tokens", "max_seq_len")
    config = {
        "version": "1.2.1",
        "pretrained_config": {"mapping": {"world_size": 2}, "rotary_base": 500000.0},
        "build_config": {key: getattr(engine.settings, key) for key in limits},
    }
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(2):
        (folder / f"rank{rank}.engine").write_bytes(b"engine")
    entry = EngineEntry(
        name=engine.name,
        expert="base",
        key="k",
        devices=engine.devices,
        settings=asdict(engine.settings),
        rope=asdict(engine.source.rope),
        lora_modules=(),
        max_lora_rank=0,
        commands=("trtllm-build",),
        memory=asdict(engine.share.memory),
        kv_tokens=4096,
        kv_fraction=0.9,
        lora_fraction=0.5,
    )
    names = [path.relative_to(directory).as_posix() for path in folder.iterdir()]
    manifest = TrtManifest(
        topology="shared",
        image="26.07-trtllm-python-py3",
        versions={"compllm": "0", "tensorrt_llm": "1.2.1", "tensorrt": "10.14.1.48"},
        gpu=H100.name,
        compute_capability="9.0",
        num_gpus=2,
        base_name="llama-8b",
        base_sha256="0" * 64,
        engines=(entry,),
        adapters=(AdapterEntry("chem", 7, 4, "0" * 64),),
        files=file_entries(directory, names),
    )
    manifest.write(directory)
    return manifest


def test_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = finished(tmp_path)
    read = TrtManifest.read(tmp_path)
    assert read == manifest
    read.verify(tmp_path)
    assert read.engine("base").name == "tensorrt_llm"
    with pytest.raises(ArtefactError, match="no engine of 'bio': there are base"):
        read.engine("bio")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"tensorrt_llm": "1.2.0"},
            "built with tensorrt_llm 1.2.1, here is 1.2.0: serve them from",
        ),
        ({"tensorrt": "10.15.1"}, "built with tensorrt 10.14.1.48, here is 10.15.1"),
        ({"tensorrt_llm": ""}, "here is none: serve them from the image tritonserver:26.07"),
        ({"gpus": ()}, "planned for 2 GPUs, 0 are visible"),
        ({"gpus": (H100,)}, "planned for 2 GPUs, 1 are visible"),
        (
            {"gpus": (H100, SeenGpu(1, "NVIDIA L4", "8.9", 23034, "5"))},
            "(compute capability 9.0), GPU 1 is NVIDIA L4 (8.9)",
        ),
    ],
)
def test_other_image_or_gpu_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    manifest = finished(tmp_path)
    manifest.check_serving(SERVING)
    with pytest.raises(ArtefactError) as caught:
        manifest.check_serving(replace(SERVING, **changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_built_engine_is_refused(tmp_path: Path) -> None:
    manifest = finished(tmp_path)
    (tmp_path / "tensorrt_llm" / "rank1.engine").unlink()
    with pytest.raises(ArtefactError, match=r"rank1\.engine cannot be read .*build it again"):
        manifest.verify(tmp_path)
    # The same without a manifest that lists it, as an interrupted trtllm-build leaves it.
    files = {name: entry for name, entry in manifest.files.items() if "rank1" not in name}
    with pytest.raises(ArtefactError, match=r"half-built: rank1\.engine is missing"):
        replace(manifest, files=files).verify(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ArtefactError, match="holds no finished TensorRT-LLM engines"):
        TrtManifest.read(tmp_path)


def test_changed_file_is_refused(tmp_path: Path) -> None:
    manifest = finished(tmp_path)
    (tmp_path / "tensorrt_llm" / "rank0.engine").write_bytes(b"ENGINE")
    manifest.verify(tmp_path, is_deep=False)  # of the same size
    with pytest.raises(ArtefactError, match=r"rank0\.engine is damaged"):
        manifest.verify(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "1.1.0"}, "was built by TensorRT-LLM 1.1.0, not 1.2.1"),
        ({"build_config": {}}, "max_batch_size is None, 64 was asked for"),
        (
            {"pretrained_config": {"mapping": {"world_size": 2}, "rotary_base": 10000.0}},
            "rotary_base is 10000.0, the checkpoint has 500000",
        ),
        (
            {"pretrained_config": {"mapping": {"world_size": 1}}},
            "world_size is 1, 2 was asked for",
        ),
    ],
)
def test_engine_of_other_settings_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    manifest = replace(finished(tmp_path), files={})
    rewrite_json(tmp_path / "tensorrt_llm" / "config.json", changes)
    with pytest.raises(ArtefactError) as caught:
        manifest.verify(tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "compllm-trtllm/0"}, "has format 'compllm-trtllm/0'"),
        ({"engines": []}, "is damaged"),
        ({"engines": [{"name": "x"}]}, "is damaged"),
        ({"files": {"../../etc/passwd": {"size": 1, "sha256": ""}}}, "outside the directory"),
        ({"surplus": 1}, "is damaged"),
    ],
)
def test_damaged_manifest_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    finished(tmp_path)
    rewrite_json(tmp_path / "manifest.json", changes)
    with pytest.raises(ArtefactError) as caught:
        TrtManifest.read(tmp_path)
    assert said in str(caught.value)
