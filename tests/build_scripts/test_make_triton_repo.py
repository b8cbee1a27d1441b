"""Repositories of both topologies: what is written, read back, and what is refused."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from repositories import (
    ADAPTERS,
    engine_entry,
    expert_entries,
    write_engines,
)

from compllm.assembly import make_generator
from compllm.build_scripts.make_triton_repo import Inputs, main, make_repository
from compllm.build_scripts.repository import core, launch
from compllm.build_scripts.repository.contract import differences
from compllm.build_scripts.trtllm.record import TrtManifest
from compllm.build_scripts.trtllm.settings import EngineSettings
from compllm.catalogue import load_catalogue
from compllm.config import load_config
from compllm.errors import ArtefactError, ConfigError
from compllm.formats.checkpoint import validate_checkpoint
from compllm.served import difference_from
from compllm.types import Query

MPIRUN = "mpirun --allow-run-as-root --bind-to none"  # else each process keeps to one core


def _config(out: Path, model: str = "tensorrt_llm") -> Any:
    return core.parse((out / "models" / model / "config.pbtxt").read_text(encoding="utf-8"))


def _parameters(out: Path, model: str = "tensorrt_llm") -> dict[str, str]:
    return {key: each.string_value for key, each in _config(out, model).parameters.items()}


def test_shared_base_is_one_core_model_and_the_face(
    inputs: Inputs, shared: TrtManifest, tmp_path: Path
) -> None:
    out = make_repository(inputs, tmp_path / "out")
    assert sorted(path.name for path in (out / "models").iterdir()) == ["comp_llm", "tensorrt_llm"]
    assert differences(_config(out)) == []
    assert (out / "models" / "tensorrt_llm" / "1").is_dir()
    assert (out / "models" / "comp_llm" / "1" / "model.py").is_file()
    assert not [path for path in out.rglob("*") if path.is_file() and "${" in _plain(path)]


def test_the_face_says_which_catalogue_it_serves(
    inputs: Inputs, shared: TrtManifest, tmp_path: Path
) -> None:
    """A client with another catalogue warns by it."""
    out = make_repository(inputs, tmp_path / "out")
    summary = json.loads(_parameters(out, "comp_llm")["catalogue"])
    catalogue = load_catalogue(out / "experts.toml")
    assert summary["experts"] == {each.name: each.adapter_id for each in catalogue.experts}
    assert difference_from(summary, catalogue) is None


def _plain(path: Path) -> str:
    """Where a placeholder would be wrong: a shell's own ${...} and the model's code are none."""
    return path.read_text(encoding="utf-8") if path.suffix in (".pbtxt", ".toml") else ""


def test_shared_base_has_the_numbers_of_the_build(
    inputs: Inputs, shared: TrtManifest, engines: Path, tmp_path: Path
) -> None:
    parameters = _parameters(make_repository(inputs, tmp_path / "out"))
    assert parameters["gpt_model_path"] == str(engines / "tensorrt_llm")
    assert parameters["tokenizer_dir"] == str(engines / "tokenizer")
    assert parameters["lora_cache_max_adapter_size"] == "16"
    assert parameters["lora_cache_gpu_memory_fraction"] == "0.4"
    assert int(parameters["lora_cache_host_memory_bytes"]) >= 2**30
    assert parameters["kv_cache_free_gpu_mem_fraction"] == "0.85"
    assert "max_tokens_in_paged_kv_cache" not in parameters
    assert parameters["gpu_device_ids"] == "0"


def test_no_folder_of_adapters_is_loaded_by_the_backend(
    inputs: Inputs, shared: TrtManifest, tmp_path: Path
) -> None:
    """It reads the folders' names as 32-bit numbers, and an id of 53 bits ended the load."""
    parameters = _parameters(make_repository(inputs, tmp_path / "out"))
    assert "lora_prefetch_dir" not in parameters


def test_the_server_asks_for_each_adapter_and_a_plan_before_it_is_ready(
    inputs: Inputs, shared: TrtManifest, engines: Path, tmp_path: Path
) -> None:
    out = make_repository(inputs, tmp_path / "out")
    samples = {each.name: each.inputs for each in _config(out).model_warmup}
    assert list(samples) == ["base", "adapter-11", "adapter-12", "plan"]
    folder = out / "models" / "tensorrt_llm" / "warmup"

    def raw(sample: str, tensor: str) -> bytes:
        return (folder / samples[sample][tensor].input_data_file).read_bytes()

    for task_id in (11, 12):
        name = f"adapter-{task_id}"
        assert raw(name, "lora_task_id") == np.uint64(task_id).tobytes()
        weights = np.load(engines / "adapters" / str(task_id) / "model.lora_weights.npy")
        assert raw(name, "lora_weights") == weights.tobytes()
        assert list(samples[name]["lora_config"].dims) == [3, 4]
    assert "lora_task_id" not in samples["base"]
    generator = make_generator(load_catalogue(out / "experts.toml"), load_config(environ={}))
    guide = generator.request(Query("x")).guide
    assert guide is not None
    # A text in a tensor has its length before it, in four bytes.
    assert raw("plan", "guided_decoding_guide")[4:].decode() == guide.text
    made = {path.name for path in folder.iterdir()}
    assert made == {
        each.input_data_file for inputs_ in samples.values() for each in inputs_.values()
    }


def test_warm_up_has_no_guide_where_the_engines_have_none(
    inputs: Inputs, shared: TrtManifest, tmp_path: Path
) -> None:
    out = make_repository(replace(inputs, is_guided=False), tmp_path / "out")
    (plan,) = (each for each in _config(out).model_warmup if each.name == "plan")
    assert "guided_decoding_guide" not in plan.inputs


def test_warm_up_can_be_left_off(inputs: Inputs, shared: TrtManifest, tmp_path: Path) -> None:
    out = make_repository(replace(inputs, is_warmed=False), tmp_path / "out")
    assert not _config(out).model_warmup
    assert not (out / "models" / "tensorrt_llm" / "warmup").exists()


def test_cuda_graphs_are_on_without_adapters_and_off_with_them(
    inputs: Inputs, engines: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    entries = expert_entries(tiny_checkpoint, (0,), (1,), (2,))
    shape = validate_checkpoint(tiny_checkpoint)
    entries[0] = engine_entry(shape, max_lora_rank=16)
    write_engines(engines, tiny_checkpoint, entries, ADAPTERS)
    out = make_repository(inputs, tmp_path / "out")
    assert "cuda_graph_mode" not in _parameters(out)
    expert = _parameters(out, "tensorrt_llm_chemistry")
    assert (expert["cuda_graph_mode"], expert["cuda_graph_cache_size"]) == ("true", "16")


def test_other_ranks_of_an_engine_are_asked_nothing(
    inputs: Inputs, engines: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """They take no requests: a warm-up request would end their load."""
    entry = engine_entry(validate_checkpoint(tiny_checkpoint), devices=(0, 1), max_lora_rank=16)
    write_engines(engines, tiny_checkpoint, [entry], ADAPTERS)
    out = make_repository(inputs, tmp_path / "out")
    assert _config(out).model_warmup
    other = core.parse((out / "workers" / "tensorrt_llm" / "config.pbtxt").read_text())
    assert not other.model_warmup
    assert differences(other) == []
    script = (out / "launch.sh").read_text()
    first, second = script.split(" : -n 1 ")
    assert '--model-repository="$here/models"' in first
    assert '--model-repository="$here/workers"' in second


def test_engines_that_share_a_gpu_have_fixed_budgets(
    inputs: Inputs, crowded: TrtManifest, tmp_path: Path
) -> None:
    out = make_repository(inputs, tmp_path / "out")
    for entry in crowded.engines:
        assert _parameters(out, entry.name)["max_tokens_in_paged_kv_cache"] == "40960"
        assert _config(out, entry.name).name == entry.name
        assert differences(_config(out, entry.name)) == []


def test_engines_on_gpus_of_their_own_take_what_is_free(
    inputs: Inputs, spread: TrtManifest, tmp_path: Path
) -> None:
    out = make_repository(inputs, tmp_path / "out")
    placed = {e.name: _parameters(out, e.name) for e in spread.engines}
    assert [each["gpu_device_ids"] for each in placed.values()] == ["0", "1", "2"]
    assert {each["kv_cache_free_gpu_mem_fraction"] for each in placed.values()} == {"0.85"}


def test_guided_decoding_is_on_with_a_file_that_is_there(
    inputs: Inputs, shared: TrtManifest, tmp_path: Path
) -> None:
    parameters = _parameters(make_repository(inputs, tmp_path / "out"))
    assert parameters["guided_decoding_backend"] == "xgrammar"
    info = json.loads(Path(parameters["xgrammar_tokenizer_info_path"]).read_text())
    assert set(info) == {"encoded_vocab", "tokenizer_str", "stop_token_ids"}


def test_guided_decoding_can_be_left_off(
    inputs: Inputs, shared: TrtManifest, tmp_path: Path
) -> None:
    out = make_repository(replace(inputs, is_guided=False), tmp_path / "out")
    assert _parameters(out)["guided_decoding_backend"] == ""
    assert not (out / "xgrammar_tokenizer_info.json").exists()


@pytest.mark.parametrize(
    ("devices", "mode", "parts"),
    [
        (((0,),), "single", ("exec /opt/tritonserver/bin/tritonserver",)),
        (((0,), (0,)), "single", ("exec /opt/tritonserver/bin/tritonserver",)),
        (
            ((0, 1),),
            "leader",
            (f"{MPIRUN} -n 1 /opt", " : -n 1 ", "--load-model=tensorrt_llm"),
        ),
        (
            ((0,), (1,)),
            "orchestrator",
            ("TRTLLM_ORCHESTRATOR=1", "byte-size=1:0", MPIRUN),
        ),
        (((1,),), "leader", ("mpirun",)),
    ],
)
def test_launch_fits_the_placement(
    devices: tuple[tuple[int, ...], ...], mode: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    models = [
        core.CoreModel(
            f"tensorrt_llm{'_x' * number}", Path("/e"), Path("/t"), 8, gpus, 0.9, kv_tokens=64
        )
        for number, gpus in enumerate(devices)
    ]
    script = launch.script(models, Path("/my engines"))
    assert launch.mode(models) == mode
    assert all(part in script for part in parts)
    assert "doctor --gpu --engines '/my engines'" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_launch_runs_the_server_with_the_models_beside_it(
    inputs: Inputs, shared: TrtManifest, tmp_path: Path
) -> None:
    out = make_repository(inputs, tmp_path / "out")
    script = (out / "launch.sh").read_text().replace("/opt/tritonserver/bin/tritonserver", "echo")
    (out / "launch.sh").write_text(script)
    fake = tmp_path / "bin" / "compllm"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    told = subprocess.run(
        [out / "launch.sh", "--log-verbose=1"],
        env={"PATH": f"{fake.parent}:/usr/bin:/bin", "GRPC_PORT": "9001"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"--model-repository={out}/models --grpc-port=9001 --http-port=8000" in told
    assert told.rstrip().endswith("--log-verbose=1")


def test_record_says_what_it_was_made_from(
    inputs: Inputs, crowded: TrtManifest, engines: Path, tmp_path: Path
) -> None:
    record = json.loads((make_repository(inputs, tmp_path / "out") / "repository.json").read_text())
    assert record["engines"] == str(engines)
    assert record["launch"] == "single"
    assert record["image"] == "26.07-trtllm-python-py3"
    assert record["models"]["tensorrt_llm"]["kv_tokens"] == 40960


def test_made_again_it_is_replaced_whole(
    inputs: Inputs, shared: TrtManifest, tmp_path: Path
) -> None:
    out = make_repository(inputs, tmp_path / "out")
    (out / "models" / "old").mkdir()
    make_repository(inputs, out)
    assert not (out / "models" / "old").exists()


def test_foreign_directory_is_not_replaced(
    inputs: Inputs, shared: TrtManifest, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ConfigError, match="holds other files"):
        make_repository(inputs, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        make_repository(inputs, tmp_path / "file")


def test_missing_and_half_built_engines_are_refused(
    inputs: Inputs, tiny_checkpoint: Path, engines: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match=r"no finished .* \(no manifest\.json\)"):
        make_repository(inputs, tmp_path / "out")
    entry = engine_entry(validate_checkpoint(tiny_checkpoint))
    write_engines(engines, tiny_checkpoint, [entry])
    (engines / "tensorrt_llm" / "rank0.engine").unlink()
    with pytest.raises(ArtefactError, match=r"rank0\.engine cannot be read"):
        make_repository(inputs, tmp_path / "out")


def test_kv_share_below_one_sequence_is_refused(
    inputs: Inputs, tiny_checkpoint: Path, engines: Path, tmp_path: Path
) -> None:
    entry = engine_entry(validate_checkpoint(tiny_checkpoint), kv_tokens=4064)
    write_engines(engines, tiny_checkpoint, [entry])
    with pytest.raises(ArtefactError, match=r"4064 tokens, less than one sequence .* 4096"):
        make_repository(inputs, tmp_path / "out")


def test_cache_without_pages_is_refused(
    inputs: Inputs, tiny_checkpoint: Path, engines: Path, tmp_path: Path
) -> None:
    settings = EngineSettings(kv_cache_type="continuous")
    entry = engine_entry(validate_checkpoint(tiny_checkpoint), settings=settings)
    write_engines(engines, tiny_checkpoint, [entry])
    with pytest.raises(ArtefactError, match="continuous KV cache"):
        make_repository(inputs, tmp_path / "out")


def test_engine_without_paged_context_neither_reuses_nor_chunks(
    inputs: Inputs, tiny_checkpoint: Path, engines: Path, tmp_path: Path
) -> None:
    settings = EngineSettings(paged_context_fmha=False)
    entries = expert_entries(tiny_checkpoint, (0,), (0,), (0,))
    shape = validate_checkpoint(tiny_checkpoint)
    entries[0] = engine_entry(shape, settings=settings)
    write_engines(engines, tiny_checkpoint, entries)
    parameters = _parameters(make_repository(inputs, tmp_path / "out"))
    assert parameters["enable_chunked_context"] == "false"
    assert parameters["enable_kv_cache_reuse"] == "false"


def test_full_disk_leaves_what_was_there(
    inputs: Inputs, shared: TrtManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make_repository(inputs, tmp_path / "out")
    before = sorted(out.rglob("*"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(out))

    monkeypatch.setattr(core, "render", full)
    with pytest.raises(OSError, match="No space left"):
        make_repository(inputs, out)
    assert sorted(out.rglob("*")) == before
    assert not list(tmp_path.glob("out.*"))


def test_script_tells_faults_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--engines", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1


def test_embedded_repository_comes_from_the_same_code(tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "manifest.json").write_text("{}")
    assert main(["--embedded", str(engine), "--out", str(tmp_path / "out")]) == 0
    config = _config(tmp_path / "out")
    assert differences(config, is_embedded=True) == []
    assert config.parameters["gpt_model_path"].string_value == str(engine)
    shutil.rmtree(engine)
    assert main(["--embedded", str(engine), "--out", str(tmp_path / "out")]) == 1
