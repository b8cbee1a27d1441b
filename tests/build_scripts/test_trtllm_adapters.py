"""Adapters reach hf_lora_convert in the one form that it reads right, and leave it unchanged.

The converter takes the rank from the tensors, one lora_alpha for all of them, and drops tensors of
other names. The one here is a stand-in, written after upstream's description of the arrays.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import MakeAdapter
from trtllm_tools import Tools

from compllm.build_scripts.trtllm import flags
from compllm.build_scripts.trtllm.adapters import (
    check_converted,
    check_ranks,
    target_modules,
    write_prepared,
)
from compllm.errors import ArtefactError
from compllm.formats.adapters import Adapter, LoraWeights, make_adapter, read_peft
from compllm.formats.checkpoint import validate_checkpoint
from compllm.formats.lora_tensors import MODULE_IDS, from_tensors
from compllm.formats.shape import MODULES, BaseShape

# The names that upstream's converter knows, as a pattern of its own.
UPSTREAM_NAME = re.compile(r".*\.layers\.\d+\.(self_attn|mlp)\.[a-z_]+\.lora_(A|B)\.weight")


@pytest.fixture(scope="module")
def shape(tiny_checkpoint: Path) -> BaseShape:
    return validate_checkpoint(tiny_checkpoint)


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return Tools(tmp_path / "image", monkeypatch).examples / "hf_lora_convert.py"


def convert(converter: Path, adapter: Adapter, place: Path) -> Path:
    prepared, out = place / "prepared", place / "out"
    prepared.mkdir()
    write_prepared(adapter, prepared)
    command = [sys.executable, converter, "--in-file", prepared, "--out-dir", out]
    subprocess.run(command, check=True)
    return out


@pytest.mark.parametrize(
    "lora",
    [
        {"rank": 4, "modules": MODULES},
        {"rank": 4, "modules": ["q_proj"], "alpha": 7},
        {"rank": 8, "modules": ["q_proj", "up_proj"], "use_rslora": True},
        {
            "rank": 4,
            "modules": ["q_proj", "k_proj"],
            "rank_pattern": {"k_proj": 3},
            "alpha_pattern": {"q_proj": 40},
        },
    ],
)
def test_every_kind_of_scale_survives_the_conversion(
    tiny_checkpoint: Path,
    shape: BaseShape,
    make_adapter: MakeAdapter,
    converter: Path,
    tmp_path: Path,
    lora: dict[str, Any],
) -> None:
    adapter = read_peft(make_adapter(tiny_checkpoint, "chem", **lora), shape, "chem")
    out = convert(converter, adapter, tmp_path)
    check_converted(adapter, out)
    weights, config = (np.load(out / f"model.lora_{kind}.npy")[0] for kind in ("weights", "config"))
    back = from_tensors("chem", weights, config, shape)
    for key, module in adapter.modules.items():
        np.testing.assert_allclose(back.modules[key].b, module.folded_b, rtol=2e-3, atol=1e-6)


def test_prepared_directory_holds_what_the_converter_reads(
    tiny_checkpoint: Path, shape: BaseShape, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    folder = make_adapter(tiny_checkpoint, "chem", rank=4, alpha=32, modules=["q_proj", "up_proj"])
    adapter = read_peft(folder, shape, "chem")
    write_prepared(adapter, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 2
    assert all(UPSTREAM_NAME.fullmatch(name) for name in tensors)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["lora_alpha"] / config["r"], config["use_rslora"]) == (1.0, False)
    # Still a PEFT directory: read again, it is the same adapter.
    assert read_peft(tmp_path, shape, "chem").sha256 == adapter.sha256


def test_our_module_numbers_are_upstreams() -> None:
    ids, names = flags.lora_module_ids(), flags.lora_modules()
    assert {module: ids[names[module]] for module in MODULES} == MODULE_IDS


def made(**ranks: int) -> Adapter:
    """An adapter of layer 0 of these modules, for a base of 64 columns."""
    shape = BaseShape(2, 64, 96, 4, 2, 16, 100)
    rng = np.random.default_rng(0)
    modules = {}
    for name, rank in ranks.items():
        num_out, num_in = shape.module_shapes()[name]
        a, b = rng.normal(size=(rank, num_in)), rng.normal(size=(num_out, rank))
        modules[0, name] = LoraWeights(a.astype(np.float32), b.astype(np.float32))
    return make_adapter("chem", modules)


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (["v_proj"], ("attn_q", "attn_k", "attn_v")),
        (["up_proj"], ("mlp_h_to_4h", "mlp_gate")),
        (["o_proj", "down_proj"], ("attn_dense", "mlp_4h_to_h")),
        (
            ["q_proj", "gate_proj"],
            ("attn_q", "attn_k", "attn_v", "mlp_h_to_4h", "mlp_gate"),
        ),
    ],
)
def test_target_modules_are_whole_groups(modules: list[str], expected: tuple[str, ...]) -> None:
    assert target_modules([made(**{name: 2}) for name in modules]) == expected


def test_ranks_that_cannot_be_served_are_refused() -> None:
    shape = BaseShape(2, 64, 96, 4, 2, 16, 100)
    check_ranks(made(q_proj=8), shape, 0)
    check_ranks(made(q_proj=8), shape, 8)
    with pytest.raises(ArtefactError, match=r"chem has rank 8, lora\.max_rank is 4: raise it"):
        check_ranks(made(q_proj=8), shape, 4)
    with pytest.raises(ArtefactError, match="layer 0 k_proj has rank 40, more than the 32"):
        check_ranks(made(k_proj=40), shape, 0)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda w, c: (w * 2, c), "other numbers than the adapter has for module 1 of layer 0"),
        (lambda w, c: (w[:, :1], c[:, :1]), "1 modules of 2; module 3 of layer 0, rank 2, differs"),
        (lambda w, c: (w, c[:, :, :3]), "expected are [1, rows, width] and [1, rows, 4]"),
        (lambda w, c: (w.astype(np.float32), c), "float32 weights and int32 config"),
        (lambda w, c: (w[0], c), "expected are [1, rows, width]"),
        (lambda w, c: (w, c + np.int32([0, 0, 1, 0])), "2 modules of 2; module 1 of layer 0"),
    ],
)
def test_wrong_output_is_refused(converter: Path, tmp_path: Path, damage: Any, said: str) -> None:
    adapter = made(q_proj=2, v_proj=2)
    out = convert(converter, adapter, tmp_path)
    paths = [out / f"model.lora_{kind}.npy" for kind in ("weights", "config")]
    for path, array in zip(paths, damage(*map(np.load, paths)), strict=True):
        np.save(path, array)
    with pytest.raises(ArtefactError) as caught:
        check_converted(adapter, out)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_or_cut_output_is_refused(converter: Path, tmp_path: Path) -> None:
    adapter = made(q_proj=2)
    out = convert(converter, adapter, tmp_path)
    path = out / "model.lora_config.npy"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ArtefactError, match=r"lora_config\.npy is missing or damaged"):
        check_converted(adapter, out)
    path.unlink()
    with pytest.raises(ArtefactError, match=r"lora_config\.npy is missing or damaged"):
        check_converted(adapter, out)
