import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import rewrite_json

from compllm.build_scripts.convert_encoder import ensure_ir
from compllm.errors import ConfigError
from compllm.routing.embed import (
    IR_FORM,
    IR_RECORD,
    Array,
    OpenVINOEncoder,
    SentenceEncoder,
    encode_kept,
    encoder_id,
    find_ir,
    ir_dir,
    plain,
    sentence_transformer,
)
from compllm.testing import HashingEncoder


@pytest.fixture(scope="session")
def ir(encoder_dir: Path) -> Path:
    """The fetched encoder's OpenVINO form; the first run makes it."""
    found = ensure_ir(encoder_dir)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def converted_model(ir: Path) -> OpenVINOEncoder:
    return OpenVINOEncoder(ir)


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


LONG = "Acids are substances that give protons to bases in water. " * 30


@pytest.mark.parametrize("is_converted", [True, False])
async def test_a_question_below_a_long_text_has_its_own_vector(
    encoder_dir: Path, converted_model: OpenVINOEncoder, is_converted: bool
) -> None:
    """The encoder read 256 tokens of acids, and the route was that of the acids alone."""
    model = converted_model if is_converted else sentence_transformer(encoder_dir)
    encoder = SentenceEncoder(model, "id")
    asked = "What is 12 times 3?"
    rows = await encoder.encode([asked, LONG + asked, f"{asked}\n\n{LONG}", LONG])
    np.testing.assert_allclose(rows[:3], rows[[0, 0, 0]], atol=1e-4)
    assert rows[0] @ rows[3] < 0.3


async def test_a_text_that_the_encoder_can_read_is_encoded_whole(
    converted_model: OpenVINOEncoder,
) -> None:
    model = converted_model
    text = f"{'acid ' * 200}. What is 12 times 3?"
    assert model.num_tokens(text) < model.max_seq_length < len(text)
    row = (await SentenceEncoder(model, "id").encode([text]))[0]
    np.testing.assert_allclose(row, model.encode([plain(text)])[0], atol=1e-5)


async def test_the_cache_forgets_the_least_recent() -> None:
    model = CountingModel()
    encoder = SentenceEncoder(model, "id", cache_size=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        await encoder.encode([text])
    assert model.batches == [["a"], ["b"], ["c"], ["b"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is iron?", "What is iron"),
        ("  What\n is\tiron ?! ", "What is iron"),
        ("Is it 3.5?", "Is it 3.5"),
        ("?", "?"),
        ("", ""),
    ],
)
def test_what_does_not_change_the_meaning_is_not_encoded(text: str, expected: str) -> None:
    assert plain(text) == expected


async def test_texts_that_differ_by_nothing_share_a_row() -> None:
    model = CountingModel()
    await SentenceEncoder(model, "id").encode(["What is  iron", "What is iron?"])
    assert model.batches == [["What is iron"]]


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


async def test_the_real_encoder_makes_unit_rows_of_near_meaning(ir: Path) -> None:
    encoder = await SentenceEncoder.load(ir.parent)
    rows = await encoder.encode(["How many legs has a spider?", "A spider's legs?", "Pay the tax."])
    assert rows.shape == (3, encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert rows[0] @ rows[1] > 0.7 > 0.3 > rows[0] @ rows[2]


@pytest.mark.slow
async def test_the_converted_encoder_agrees_with_sentence_transformers(ir: Path) -> None:
    texts = ["How many legs has a spider?", "", "iron " * 300, "Größe, naïve, 水", "one", "two"]
    oracle = SentenceEncoder(sentence_transformer(ir.parent), "oracle")
    ours = SentenceEncoder(OpenVINOEncoder(ir), "ours")
    found, wanted = await ours.encode(texts), await oracle.encode(texts)
    np.testing.assert_allclose(found, wanted, atol=3e-4)  # weights in half precision
    assert (found * wanted).sum(axis=1).min() > 0.99999


@pytest.mark.parametrize("num_words", [1, 12, 13, 16, 17, 40])
def test_a_text_alone_has_the_row_that_it_has_among_others(
    converted_model: OpenVINOEncoder, num_words: int
) -> None:
    # Alone and short it takes the model of fixed shape.
    model = converted_model
    text = " ".join(["iron"] * num_words)
    np.testing.assert_allclose(
        model.encode([text]), model.encode([text, "a longer text " * 20])[:1], atol=1e-5
    )


def test_the_converted_encoder_runs_without_torch(ir: Path) -> None:
    # In a process of its own: the tests around this one have loaded everything.
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from compllm.routing.embed import SentenceEncoder\n"
        f"encoder = asyncio.run(SentenceEncoder.load(Path({str(ir.parent)!r})))\n"
        "asyncio.run(encoder.encode(['a', 'question']))\n"
        "print({'openvino', 'torch', 'transformers', 'sentence_transformers'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (found.stdout.strip(), found.stderr) == ("{'openvino'}", "")


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """An encoder's folder with a record of what was converted from the encoder 'source'."""
    ir_dir(tmp_path).mkdir()
    (ir_dir(tmp_path) / "weights").write_bytes(b"12345")
    record = {"source": "source", "form": IR_FORM, "openvino": "1", "sizes": {"weights": 5}}
    (ir_dir(tmp_path) / IR_RECORD).write_text(json.dumps(record))
    return tmp_path


def test_a_whole_conversion_of_this_encoder_is_found(converted: Path) -> None:
    assert find_ir(converted, "source") == ir_dir(converted)


def test_the_conversion_of_another_encoder_is_not_used(converted: Path) -> None:
    assert find_ir(converted, "other") is None


def test_the_form_of_another_version_is_not_used(converted: Path) -> None:
    # An 8-bit trial had left its files in the cache: every vector was a little off.
    record = ir_dir(converted) / IR_RECORD
    rewrite_json(record, {"form": "int8 rows"})
    assert find_ir(converted, "source") is None


@pytest.mark.parametrize("name", ["weights", IR_RECORD])
@pytest.mark.parametrize("content", [b"", b"[]", None])
def test_a_damaged_conversion_is_not_used(
    converted: Path, name: str, content: bytes | None
) -> None:
    path = ir_dir(converted) / name
    path.unlink() if content is None else path.write_bytes(content)
    assert find_ir(converted, "source") is None


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["openvino", "conversion"])
async def test_without_openvino_or_the_conversion_the_library_encodes(
    ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    encoder_dir = ir.parent
    if missing == "openvino":
        monkeypatch.setitem(sys.modules, "openvino", None)
    else:
        encoder_dir = tmp_path / "encoder"
        shutil.copytree(ir.parent, encoder_dir, ignore=shutil.ignore_patterns("openvino"))
    encoder = await SentenceEncoder.load(encoder_dir)
    assert type(encoder.model).__name__ == "SentenceTransformer"
    assert encoder.id == f"{encoder_id(ir.parent)}/plain1"


async def test_after_a_cancel_the_next_waits_for_the_thread_that_still_computes() -> None:
    class SlowModel(CountingModel):
        entered, leave = threading.Event(), threading.Event()
        num_inside = 0

        def encode(self, texts: list[str], **options: object) -> Array:
            self.num_inside += 1
            assert self.num_inside == 1
            self.entered.set()
            assert self.leave.wait(10)
            self.num_inside -= 1
            return super().encode(texts, **options)

    model = SlowModel()
    encoder = SentenceEncoder(model, "id")
    first = asyncio.create_task(encoder.encode(["a"]))
    await asyncio.to_thread(model.entered.wait, 10)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(encoder.encode(["bb"]))
    for _ in range(20):
        await asyncio.sleep(0)
    model.leave.set()
    assert (await second)[0, 0] == 2
    assert len(model.batches) == 2


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    return tmp_path


async def encode_at_a_new_start(texts: list[str], encoder_id: str = "id") -> tuple[Array, int]:
    model = CountingModel()
    rows = await encode_kept(SentenceEncoder(model, encoder_id), texts)
    return rows, len(model.batches)


async def test_kept_vectors_are_not_computed_at_the_next_start(home: Path) -> None:
    first, num_first = await encode_at_a_new_start(["a", "bb"])
    second, num_second = await encode_at_a_new_start(["a", "bb"])
    np.testing.assert_array_equal(first, second)
    assert (num_first, num_second) == (1, 0)
    assert len(list((home / "vectors").iterdir())) == 1


async def test_other_texts_and_another_encoder_have_vectors_of_their_own(home: Path) -> None:
    await encode_at_a_new_start(["a", "bb"])
    for texts, encoder in ((["a", "cc"], "id"), (["bb", "a"], "id"), (["a", "bb"], "other")):
        rows, num_batches = await encode_at_a_new_start(texts, encoder)
        assert num_batches == 1
        assert rows[:, 0].tolist() == [len(text) for text in texts]


@pytest.mark.parametrize("damage", ["cut", "empty", "one byte", "another shape", "other content"])
async def test_damaged_vectors_are_made_anew(home: Path, damage: str) -> None:
    whole, _ = await encode_at_a_new_start(["a", "bb"])
    (path,) = (home / "vectors").iterdir()
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "one byte":
            place = content.index(whole.tobytes())
            path.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
        case "another shape":
            np.savez(path, rows=whole[:1])
        case "other content":
            np.savez(path, other=whole)
    for num_expected in (1, 0):
        rows, num_batches = await encode_at_a_new_start(["a", "bb"])
        np.testing.assert_array_equal(rows, whole)
        assert num_batches == num_expected


async def test_a_cache_that_cannot_be_written_is_no_fault(home: Path) -> None:
    (home / "vectors").write_text("a file in the way")
    rows, _ = await encode_at_a_new_start(["a"])
    assert rows.shape == (1, 2)


async def test_only_a_real_encoders_vectors_are_kept(home: Path) -> None:
    await encode_kept(HashingEncoder(), ["a"])
    assert os.listdir(home) == []


async def test_the_hashing_encoder_makes_unit_rows() -> None:
    rows = await HashingEncoder().encode(["a b", "", "b a"])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(rows[0], rows[2])
