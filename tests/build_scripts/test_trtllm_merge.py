"""A merged checkpoint answers as base and adapter do under PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import MakeAdapter, rewrite_json

from compllm.build_scripts.trtllm import merge
from compllm.formats.checkpoint import validate_checkpoint


def logits(checkpoint: Path, adapter: Path | None = None):  # type: ignore[no-untyped-def]
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.inference_mode():
        return model.eval()(input_ids=torch.arange(100, 132)[None]).logits[0]


def run(base: Path, adapter: Path, out: Path, dtype: str = "float32") -> int:
    out.mkdir()
    paths = ["--base", str(base), "--adapter", str(adapter), "--out", str(out)]
    return merge.main([*paths, "--dtype", dtype])


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint: Path, make_adapter: MakeAdapter) -> Path:
    """Ranks and alphas of its own for some modules."""
    return make_adapter(
        tiny_checkpoint,
        "chem",
        rank=8,
        modules=["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"],
        rank_pattern={"k_proj": 2},
        alpha_pattern={"up_proj": 40},
        scale=0.2,
        seed=3,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float16", 3e-2)])
def test_merged_logits_are_those_of_peft(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    assert run(tiny_checkpoint, adapter, tmp_path / "out", dtype) == 0
    merged, expected = logits(tmp_path / "out"), logits(tiny_checkpoint, adapter)
    assert (merged - expected).abs().max() < tolerance
    # The adapter does something, or the comparison says nothing.
    assert (expected - logits(tiny_checkpoint)).abs().max() > 1.0


def test_wrapped_names_and_repacks_are_merged_as_well(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(adapter, tmp_path / "chem"))
    tensors = load_file(copy / "adapter_model.safetensors")
    wrapped = {f"_orig_mod.{name}": value for name, value in tensors.items()}
    save_file(wrapped, copy / "adapter_model.safetensors")
    repack = {"base_model_name_or_path": "unsloth/tiny-llama-bnb-4bit"}
    rewrite_json(copy / "adapter_config.json", repack)
    (tmp_path / "out").mkdir()
    merge.merge(tiny_checkpoint, copy, tmp_path / "out", "float32", is_same_base=True)
    expected = logits(tiny_checkpoint, adapter)
    assert (logits(tmp_path / "out") - expected).abs().max() < 1e-4


def test_merged_checkpoint_is_whole(tiny_checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    assert run(tiny_checkpoint, adapter, tmp_path / "out", "float16") == 0
    shape = validate_checkpoint(tmp_path / "out")
    assert shape.num_layers == validate_checkpoint(tiny_checkpoint).num_layers
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"


def test_merged_checkpoint_keeps_the_rotary_base_in_the_form_of_the_image(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    base = tmp_path / "tiny-llama"
    shutil.copytree(tiny_checkpoint, base)
    rope = {"rope_theta": 100000.0, "rope_type": "default"}
    rewrite_json(base / "config.json", {"rope_parameters": rope})
    assert run(base, adapter, tmp_path / "out") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == 100000.0
    assert "rope_parameters" not in config


def test_adapter_of_another_base_is_one_line(
    tiny_checkpoint: Path,
    make_adapter: MakeAdapter,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_adapter(tiny_checkpoint, "chem", rank=2, modules=["q_proj"])
    rewrite_json(folder / "adapter_config.json", {"base_model_name_or_path": "other/llama-70b"})
    capsys.readouterr()  # transformers' progress bar
    assert run(tiny_checkpoint, folder, tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert "made for base llama-70b, this one is tiny-llama" in err
    assert err.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []
