import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from compllm import minilm
from compllm.embed import Array, SentenceEncoder, _sentence_transformer, encoder_id
from compllm.errors import ConfigError
from compllm.testing import HashingEncoder


class CountingModel:
    """Stands for the loaded network; counts what it is asked to encode."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def get_embedding_dimension(self) -> int:
        return 2

    def encode(self, texts: list[str], **_: object) -> Array:
        self.batches.append(list(texts))
        return np.array([[len(text), 0.0] for text in texts], np.float32)


async def test_a_text_is_encoded_once_and_rows_keep_the_order() -> None:
    model = CountingModel()
    encoder = SentenceEncoder(model, "id")
    rows = await encoder.encode(["a", "bb", "a"])
    assert rows.dtype == np.float32
    assert rows[:, 0].tolist() == [1, 2, 1]
    await encoder.encode(["bb", "ccc"])
    assert model.batches == [["a", "bb"], ["ccc"]]


async def test_the_cache_forgets_the_least_recent() -> None:
    model = CountingModel()
    encoder = SentenceEncoder(model, "id", cache_size=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        await encoder.encode([text])
    assert model.batches == [["a"], ["b"], ["c"], ["b"]]


async def test_no_texts_are_no_rows() -> None:
    assert (await SentenceEncoder(CountingModel(), "id").encode([])).shape == (0, 2)


async def test_a_missing_encoder_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fetch"):
        await SentenceEncoder.load(tmp_path)


async def test_a_broken_encoder_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("junk")
    with pytest.raises(ConfigError, match="cannot load the sentence encoder"):
        await SentenceEncoder.load(tmp_path)


def test_the_id_follows_what_decides_the_vectors(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = encoder_id(tmp_path)
    (tmp_path / "README.md").write_text("x")
    assert encoder_id(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert encoder_id(tmp_path) != first


def test_an_encoder_without_weights_has_no_id(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="incomplete"):
        encoder_id(tmp_path)


async def test_the_real_encoder_makes_unit_rows_of_near_meaning(encoder_dir: Path) -> None:
    encoder = await SentenceEncoder.load(encoder_dir)
    rows = await encoder.encode(["How many legs has a spider?", "A spider's legs?", "Pay the tax."])
    assert rows.shape == (3, encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert rows[0] @ rows[1] > 0.7 > 0.3 > rows[0] @ rows[2]


@pytest.mark.slow
async def test_the_numpy_encoder_agrees_with_sentence_transformers(encoder_dir: Path) -> None:
    texts = ["How many legs has a spider?", "", "iron " * 300, "Größe, naïve, 水"]
    oracle = SentenceEncoder(_sentence_transformer(encoder_dir), "oracle")
    assert minilm.fits(encoder_dir)
    ours = await (await SentenceEncoder.load(encoder_dir)).encode(texts)
    np.testing.assert_allclose(ours, await oracle.encode(texts), atol=2e-5)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "model_type", "mpnet"),
        ("config.json", "hidden_act", "relu"),
        ("1_Pooling/config.json", "pooling_mode_cls_token", True),
    ],
)
def test_another_kind_of_encoder_is_left_to_the_library(
    encoder_dir: Path, tmp_path: Path, file: str, key: str, value: object
) -> None:
    shutil.copytree(encoder_dir, tmp_path / "encoder", ignore=shutil.ignore_patterns("*.bin"))
    path = tmp_path / "encoder" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert not minilm.fits(tmp_path / "encoder")


async def test_the_hashing_encoder_makes_unit_rows() -> None:
    rows = await HashingEncoder().encode(["a b", "", "b a"])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(rows[0], rows[2])
