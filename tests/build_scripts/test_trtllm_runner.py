"""A build is resumed, never half-seen, and ends in a true manifest. The image's programs are
stand-ins (trtllm_tools.py): what is tested is what runs them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from helpers import MakeAdapter
from trtllm_tools import Tools, write_catalogue

from compllm.build_scripts.trtllm import runner
from compllm.build_scripts.trtllm.image import find_image, inspect
from compllm.build_scripts.trtllm.plan import BuildPlan, make_plan
from compllm.build_scripts.trtllm.record import TrtManifest
from compllm.build_scripts.trtllm.settings import default_settings_path, load_settings
from compllm.catalogue import load_catalogue
from compllm.errors import ArtefactError, ConfigError
from compllm.formats.adapters import read_peft
from compllm.formats.checkpoint import validate_checkpoint


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    return Tools(tmp_path / "image", monkeypatch)


@pytest.fixture(scope="module")
def folders(tiny_checkpoint: Path, make_adapter: MakeAdapter) -> dict[str, tuple[Path, int]]:
    shape = validate_checkpoint(tiny_checkpoint)
    found = {}
    for seed, (name, rank, modules) in enumerate(
        [("chem", 4, ["q_proj", "v_proj"]), ("bio", 2, ["up_proj"])]
    ):
        folder = make_adapter(tiny_checkpoint, name, rank=rank, modules=modules, seed=seed)
        found[name] = (folder, read_peft(folder, shape, name).task_id)
    return found


@dataclass
class Bench:
    """A plan, and a place to build it."""

    plan: BuildPlan
    out: Path
    tools: Tools

    def build(self, plan: BuildPlan | None = None) -> TrtManifest:
        plan = plan or self.plan
        environment = inspect(find_image(plan.settings.image), self.tools.examples)
        return runner.build(plan, environment, self.out, self.tools.examples)

    def beside(self) -> set[str]:
        return {path.name for path in self.out.parent.iterdir()}


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench(
    tmp_path: Path, tools: Tools, tiny_checkpoint: Path, folders: dict[str, tuple[Path, int]]
) -> MakeBench:
    def make(
        topology: str = "shared", engine: str = "", num_gpus: int = 1, more: str = ""
    ) -> Bench:
        catalogue = write_catalogue(tmp_path / "experts.toml", folders, "chem", "bio", "other")
        shipped = default_settings_path().read_text()
        settings = tmp_path / "gpu.toml"
        settings.write_text(shipped.replace("[engine]\n", f"[engine]\n{engine}\n") + more)
        plan = make_plan(
            load_catalogue(catalogue),
            load_settings(settings, topology=topology, num_gpus=num_gpus),
            tiny_checkpoint,
        )
        out = tmp_path / "place" / "engines"
        return Bench(plan, out, tools)

    return make


def test_shared_base_builds_one_engine_and_its_adapters(bench: MakeBench) -> None:
    made = bench()
    manifest = made.build()
    assert made.tools.calls() == [
        "convert_checkpoint.py",
        "trtllm-build",
        "hf_lora_convert.py",
        "hf_lora_convert.py",
    ]
    assert TrtManifest.read(made.out) == manifest
    manifest.verify(made.out)
    (engine,) = manifest.engines
    assert engine.lora_modules == ("attn_q", "attn_k", "attn_v", "mlp_h_to_4h", "mlp_gate")
    assert (engine.name, engine.max_lora_rank) == ("tensorrt_llm", 4)
    names = {path.relative_to(made.out).as_posix() for path in made.out.rglob("*.*")}
    ids = [adapter.task_id for adapter in manifest.adapters]
    expected = {
        f"adapters/{number}/model.lora_{kind}.npy"
        for number in ids
        for kind in ("weights", "config")
    }
    expected |= {"manifest.json", "tensorrt_llm/config.json", "tensorrt_llm/rank0.engine"}
    expected |= {f"tokenizer/{name}.json" for name in ("tokenizer", "tokenizer_config", "config")}
    assert names == expected
    assert made.beside() == {"engines", ".engines.lock"}


def test_every_expert_gets_an_engine_of_its_own_weights(
    bench: MakeBench, tiny_checkpoint: Path
) -> None:
    made = bench("per-expert", more=f"[experts.bio]\ncheckpoint = '{tiny_checkpoint}'\n")
    manifest = made.build()
    assert [(entry.expert, entry.name) for entry in manifest.engines] == [
        ("base", "tensorrt_llm"),
        ("chem", "tensorrt_llm_chem"),
        ("bio", "tensorrt_llm_bio"),
    ]
    assert (manifest.adapters, manifest.engine("base").lora_modules) == ((), ())
    assert "merge.py" in manifest.engine("chem").commands[0]
    # fp8, which the GPU of these tests has, is the default without adapters.
    assert made.tools.calls() == ["quantize.py", "trtllm-build"] * 3


def test_unchanged_plan_runs_nothing(bench: MakeBench) -> None:
    made = bench()
    first = made.build()
    made.tools.calls()
    assert made.build() == first
    assert made.tools.calls() == []


def test_removed_adapter_leaves_the_engine_unbuilt_only_where_it_fits(bench: MakeBench) -> None:
    made = bench()
    made.build()
    made.tools.calls()
    fewer = replace(made.plan, adapters=made.plan.adapters[:1])
    manifest = made.build(fewer)
    assert made.tools.calls() == ["hf_lora_convert.py"]
    assert [adapter.name for adapter in manifest.adapters] == ["chem"]
    manifest.verify(made.out)


@pytest.mark.parametrize(
    ("tool", "kind", "said"),
    [
        ("trtllm-build", "fails", "trtllm-build failed: exit status 1: ValueError: upstream's own"),
        ("trtllm-build", "disk-full", "trtllm-build failed: no space left on the disk"),
        ("trtllm-build", "killed", "trtllm-build failed: ended by SIGKILL"),
        ("trtllm-build", "half-built", "half-built: rank0.engine is missing"),
        (
            "convert_checkpoint.py",
            "disk-full",
            "convert_checkpoint.py failed: no space left on the disk",
        ),
        ("hf_lora_convert.py", "other-numbers", "wrote other numbers than the adapter has"),
    ],
)
def test_failed_step_leaves_nothing_half_written_and_is_continued(
    bench: MakeBench, tool: str, kind: str, said: str
) -> None:
    made = bench()
    made.tools.trouble(tool, kind)
    with pytest.raises(ArtefactError) as caught:
        made.build()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not made.out.exists()
    assert not list(made.out.parent.rglob("*.partial"))
    done = made.tools.calls()
    made.tools.no_trouble()
    made.build().verify(made.out)
    assert made.tools.calls()[0] == tool
    assert done[-1] == tool
    assert made.beside() == {"engines", ".engines.lock"}


def test_failed_change_keeps_the_engines_that_are_there(bench: MakeBench) -> None:
    made = bench()
    first = made.build()
    changed = bench(engine="max_batch_size = 8")
    made.tools.trouble("trtllm-build", "fails")
    with pytest.raises(ArtefactError, match="upstream's own words"):
        changed.build()
    assert TrtManifest.read(made.out) == first
    first.verify(made.out)


def test_damaged_engine_is_built_again(
    bench: MakeBench, capsys: pytest.CaptureFixture[str]
) -> None:
    made = bench()
    made.build()
    made.tools.calls()
    (made.out / "tensorrt_llm" / "rank0.engine").write_bytes(b"cut")
    made.build().verify(made.out)
    assert "building anew" in capsys.readouterr().err
    assert "trtllm-build" in made.tools.calls()


def test_tensor_parallel_engine_has_a_file_for_each_rank(bench: MakeBench) -> None:
    made = bench(engine="tp = 2", num_gpus=2)
    made.tools.gpus(*(f"{i}, NVIDIA H100 80GB HBM3, 9.0, 81559, 590.44.01" for i in range(2)))
    manifest = made.build()
    assert manifest.engines[0].devices == (0, 1)
    names = sorted(path.name for path in (made.out / "tensorrt_llm").iterdir())
    assert names == ["config.json", "rank0.engine", "rank1.engine"]


def test_other_gpu_than_planned_is_refused(bench: MakeBench) -> None:
    made = bench()
    made.tools.gpus("0, NVIDIA L4, 8.9, 23034, 590.44.01")
    with pytest.raises(ArtefactError, match=r"GPU 0 is NVIDIA L4 \(compute capability 8.9\)"):
        made.build()
    made.tools.gpus("0, NVIDIA H100 MIG 1g, 9.0, 9856, 590.44.01")
    with pytest.raises(ArtefactError, match=r"with 9\.6 GiB, the plan counts on 79\.6"):
        made.build()
    assert not made.out.parent.exists()


def test_foreign_directory_is_not_replaced(bench: MakeBench) -> None:
    made = bench()
    made.out.mkdir(parents=True)
    (made.out / "thesis.txt").write_text("mine")
    with pytest.raises(ArtefactError, match="holds other files and is not replaced"):
        made.build()
    assert (made.out / "thesis.txt").read_text() == "mine"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    place = tmp_path / "place"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.usefixtures("small_disk")
def test_too_little_disk_is_told_before_the_work(bench: MakeBench) -> None:
    made = bench()
    with pytest.raises(ConfigError, match=r"building the engines: needs \d+ MB .* 0 MB are free"):
        made.build()
    assert made.tools.calls() == []


def test_disk_that_fills_up_midway_is_one_line(
    bench: MakeBench, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process took the space that was there when the build began."""
    made = bench()
    monkeypatch.setattr(runner, "require_free_space", lambda *_: None)
    (small_disk / "somebody").write_bytes(b"x" * 20_000)
    with pytest.raises((ConfigError, OSError)) as caught:
        made.build()
    assert "o space left" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not made.out.exists()
    assert not list(small_disk.rglob("*.partial"))


def test_interrupted_build_takes_its_command_down(
    bench: MakeBench, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    made = bench()
    made.tools.trouble("trtllm-build", "hangs")
    script = Path(runner.__file__).parents[1] / "build_trtllm.py"
    command = [sys.executable, str(script), "--out", str(made.out)]
    command += ["--checkpoint", str(tiny_checkpoint), "--examples", str(made.tools.examples)]
    command += ["--catalogue", str(tmp_path / "experts.toml")]
    os.mkfifo(made.tools.calls_file.parent / "hanging")
    pipe = os.open(made.tools.calls_file.parent / "hanging", os.O_RDWR)
    build = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert select.select([pipe], [], [], 300)[0], "trtllm-build never started"
        number = int(os.read(pipe, 100))
    finally:
        os.close(pipe)
    build.send_signal(signal.SIGTERM)
    _, err = build.communicate(timeout=120)
    assert build.returncode == 143
    assert err.splitlines()[-1].startswith("terminated: nothing half-written was left")
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
    assert not made.out.exists()
    assert not list(made.out.parent.rglob("*.partial"))
