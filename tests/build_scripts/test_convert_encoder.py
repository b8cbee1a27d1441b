"""Converting a tiny random encoder for OpenVINO: same vectors, made once, anew when it must be."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import rewrite_json

from compllm.build_scripts.convert_encoder import ensure_ir
from compllm.errors import ConfigError
from compllm.routing.embed import (
    IR_RECORD,
    OpenVINOEncoder,
    encoder_id,
    find_ir,
    ir_dir,
    sentence_transformer,
)


@pytest.fixture(scope="module")
def converted(encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer with random weights, the real one's tokenizer and CLS pooling."""
    import torch
    from transformers import BertConfig, BertModel

    directory = tmp_path_factory.mktemp("encoders") / "tiny"
    shutil.copytree(
        encoder_dir, directory, ignore=shutil.ignore_patterns("openvino*", "*.safetensors")
    )
    config = json.loads((directory / "config.json").read_text())
    config |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"intermediate_size": 64, "initializer_range": 0.2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(**config))  # type: ignore[no-untyped-call]
    model.save_pretrained(directory)
    rewrite_json(
        directory / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": 32,
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
        },
    )
    assert ensure_ir(directory) == ir_dir(directory)
    return directory


@pytest.fixture
def encoder(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "encoder"))


@pytest.mark.parametrize(("has_own", "within"), [(False, 1e-4), (True, 1e-3)])  # fp32, halves
def test_the_vectors_are_the_librarys_for_another_pooling_too(
    converted: Path, has_own: bool, within: float
) -> None:
    texts = ["a", "How many legs has a spider?", "iron " * 300, ""]
    ours = OpenVINOEncoder(ir_dir(converted), has_matmul_offload=has_own)
    assert ours.get_embedding_dimension() == 32
    oracle = sentence_transformer(converted).encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(ours.encode(texts), oracle, atol=within)


def test_the_id_of_the_encoder_stays(encoder: Path) -> None:
    before = encoder_id(encoder)
    shutil.rmtree(ir_dir(encoder))
    assert encoder_id(encoder) == before


def test_a_conversion_that_is_there_is_not_made_again(encoder: Path) -> None:
    before = (ir_dir(encoder) / IR_RECORD).stat()
    ensure_ir(encoder)
    after = (ir_dir(encoder) / IR_RECORD).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_another_openvino_converts_anew(encoder: Path) -> None:
    rewrite_json(ir_dir(encoder) / IR_RECORD, {"openvino": "2020.1"})
    ensure_ir(encoder)
    assert json.loads((ir_dir(encoder) / IR_RECORD).read_text())["openvino"] != "2020.1"


def test_other_weights_convert_anew(encoder: Path) -> None:
    rewrite_json(encoder / "1_Pooling" / "config.json", {"pooling_mode_max_tokens": True})
    rewrite_json(encoder / "1_Pooling" / "config.json", {"pooling_mode_cls_token": False})
    assert find_ir(encoder, encoder_id(encoder)) is None
    ensure_ir(encoder)
    assert find_ir(encoder, encoder_id(encoder)) == ir_dir(encoder)


def test_an_encoder_that_cannot_be_converted_is_one_error_and_nothing_half_made(
    encoder: Path,
) -> None:
    (encoder / "model.safetensors").write_bytes(b"no weights")
    before = sorted(path.name for path in ir_dir(encoder).iterdir())
    with pytest.raises(ConfigError, match="cannot convert the sentence encoder"):
        ensure_ir(encoder)
    assert sorted(path.name for path in ir_dir(encoder).iterdir()) == before
    assert list(encoder.glob("*.partial")) == []


def test_without_openvino_nothing_is_made(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(ir_dir(encoder))
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert ensure_ir(encoder) is None
    assert not ir_dir(encoder).exists()
