"""A GGUF made here becomes a checkpoint that transformers loads, with the tokenizer SmolLM has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compllm.build_scripts import gguf_checkpoint
from compllm.errors import ArtefactError
from compllm.formats.checkpoint import validate_checkpoint

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HIDDEN, HEADS, KV_HEADS, MIDDLE = 64, 4, 2, 96


def vocabulary() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return [*SPECIAL, *sorted(ByteLevel.alphabet()), "he", "12", "hel"]


def write_gguf(
    path: Path,
    *,
    pre: str = "smollm",
    architecture: str = "llama",
    head: int = HIDDEN // HEADS,
    more: Mapping[str, int | str] | None = None,
    tensor: str | None = None,
) -> dict[str, Any]:
    """A model of one layer with random float32 weights. Returns the tensors it wrote.

    head: the size of a head. more: entries of the architecture. tensor: an additional one.
    """
    from gguf import GGUFWriter

    tokens = vocabulary()
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MIDDLE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["h e", "1 2", "he l"])
    for add, index in (("bos", 1), ("eos", 2), ("pad", 2), ("unk", 0)):
        getattr(writer, f"add_{add}_token_id")(index)
    writer.add_chat_template("{{ messages }}")
    for key, value in (more or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    random = np.random.default_rng(0)
    queries, kv = head * HEADS, head * KV_HEADS
    shapes = {
        "token_embd": (len(tokens), HIDDEN),
        "blk.0.attn_q": (queries, HIDDEN),
        "blk.0.attn_k": (kv, HIDDEN),
        "blk.0.attn_v": (kv, HIDDEN),
        "blk.0.attn_output": (HIDDEN, queries),
        "blk.0.ffn_gate": (MIDDLE, HIDDEN),
        "blk.0.ffn_up": (MIDDLE, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, MIDDLE),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,),
        "output_norm": (HIDDEN,),
    }
    if architecture == "qwen3":
        shapes |= {"blk.0.attn_q_norm": (head,), "blk.0.attn_k_norm": (head,)}
    if tensor is not None:
        shapes[tensor] = (head // 2,)
    tensors = {name: random.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    for name, value in tensors.items():
        writer.add_tensor(f"{name}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    source = tmp_path_factory.mktemp("gguf")
    tensors = write_gguf(source / "tiny.gguf")
    directory = tmp_path_factory.mktemp("converted")
    gguf_checkpoint.convert(source / "tiny.gguf", directory)
    return directory, tensors


def test_result_is_a_valid_checkpoint(converted: tuple[Path, dict[str, Any]]) -> None:
    shape = validate_checkpoint(converted[0])
    assert (shape.num_layers, shape.hidden, shape.intermediate) == (1, HIDDEN, MIDDLE)
    assert (shape.num_heads, shape.num_kv_heads, shape.vocab) == (4, 2, len(vocabulary()))


def test_weights_arrive_in_fp16(converted: tuple[Path, dict[str, Any]]) -> None:
    from safetensors.numpy import load_file

    directory, tensors = converted
    loaded = load_file(directory / "model.safetensors")
    expected = tensors["blk.0.ffn_up"].astype(np.float16)
    np.testing.assert_array_equal(loaded["model.layers.0.mlp.up_proj.weight"], expected)


def test_rotary_halves_are_put_back_in_order(converted: tuple[Path, dict[str, Any]]) -> None:
    """A GGUF interleaves the halves of a head of q and k; transformers has one after the other."""
    from safetensors.numpy import load_file

    directory, tensors = converted
    loaded = load_file(directory / "model.safetensors")["model.layers.0.self_attn.k_proj.weight"]
    interleaved = tensors["blk.0.attn_k"].reshape(KV_HEADS, -1, 2, HIDDEN)
    expected = interleaved.swapaxes(1, 2).reshape(loaded.shape)
    np.testing.assert_array_equal(loaded, expected.astype(np.float16))


def test_tokenizer_splits_digits_and_adds_nothing(converted: tuple[Path, dict[str, Any]]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted[0])
    assert tokenizer("hel 12<|im_end|>").tokens() == ["hel", "Ġ", "1", "2", "<|im_end|>"]
    assert len(tokenizer) == len(vocabulary())
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.model_max_length == 256


def test_the_tokenizer_of_qwen2_splits_and_normalises_as_qwen2_does() -> None:
    tokens = vocabulary()
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [*tokens, "<tool_call>"],
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)) + [4],
        "tokenizer.ggml.merges": ["h e", "1 2", "he l"],
    }
    tokenizer = gguf_checkpoint.build_tokenizer(metadata)
    found = tokenizer.encode("hel12<tool_call><|im_end|>").tokens
    assert found == ["hel", "1", "2", "<tool_call>", "<|im_end|>"]
    assert tokenizer.get_vocab_size() == len(tokens) + 1
    decomposed, composed = "e\u0301", "\u00e9"
    assert tokenizer.encode(decomposed).ids == tokenizer.encode(composed).ids


def test_the_tokenizer_of_llama_3_keeps_three_digits_and_whole_words_together() -> None:
    tokens = [*vocabulary(), "123", "hello"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": ["h e", "1 2", "he l"],
    }
    tokenizer = gguf_checkpoint.build_tokenizer(metadata)
    assert tokenizer.encode("1234").tokens == ["123", "4"]
    assert tokenizer.encode("hello").tokens == ["hello"]  # no merge makes it


def test_a_qwen3_arrives_with_its_norms_of_queries_and_keys(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    more = {"attention.key_length": 128, "attention.value_length": 128}
    source, out = tmp_path / "tiny.gguf", tmp_path / "out"
    out.mkdir()
    tensors = write_gguf(source, pre="qwen2", architecture="qwen3", head=128, more=more)
    gguf_checkpoint.convert(source, out)
    shape = validate_checkpoint(out)
    assert (shape.num_heads, shape.head_dim) == (HEADS, 128)
    loaded = load_file(out / "model.safetensors")
    for name, theirs in (("attn_q", "q_proj"), ("attn_k_norm", "k_norm")):
        found = loaded[f"model.layers.0.self_attn.{theirs}.weight"]
        np.testing.assert_array_equal(found, tensors[f"blk.0.{name}"].astype(np.float16))


def test_unknown_splitting_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf", pre="tekken")
    with pytest.raises(ArtefactError, match="'tekken'"):
        gguf_checkpoint.convert(tmp_path / "other.gguf", tmp_path)


@pytest.mark.parametrize(
    ("more", "tensor", "said"),
    [
        ({}, "rope_freqs", "scaled rotary embeddings"),
        ({"rope.scaling.type": "yarn"}, None, "rotary embeddings scaled by 'yarn'"),
        ({"attention.sliding_window": 128}, None, "a sliding window of 128 tokens"),
        ({"rope.dimension_count": 8}, None, "rotary embeddings of 8 of the 16 dimensions"),
        ({"expert_count": 4}, None, "a mixture of 4 experts"),
    ],
)
def test_what_would_be_left_out_without_a_word_is_refused(
    more: dict[str, int | str], tensor: str | None, said: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "other.gguf", more=more, tensor=tensor)
    with pytest.raises(ArtefactError, match=said):
        gguf_checkpoint.convert(tmp_path / "other.gguf", tmp_path)


def test_a_window_that_holds_every_text_and_an_unscaled_rope_are_read(tmp_path: Path) -> None:
    more = {"attention.sliding_window": 256, "rope.scaling.type": "none"}
    write_gguf(tmp_path / "tiny.gguf", more={**more, "rope.dimension_count": 16})
    gguf_checkpoint.convert(tmp_path / "tiny.gguf", tmp_path)
    validate_checkpoint(tmp_path)


def test_heads_of_another_size_than_the_familys_are_refused(tmp_path: Path) -> None:
    more = {"attention.key_length": 32, "attention.value_length": 32}
    source = tmp_path / "tiny.gguf"
    write_gguf(source, pre="qwen2", architecture="qwen3", head=32, more=more)
    with pytest.raises(ArtefactError, match="Hugging Face"):
        gguf_checkpoint.convert(source, tmp_path)


def test_the_real_base_speaks_chatml(base_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 42"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi 42<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 3, 2)
    assert tokenizer.eos_token == "<|im_end|>"


def test_the_real_base_knows_the_capital_of_france(base_dir: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    model: Any = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert str(tokenizer.decode(output[0])).startswith("The capital of France is Paris.")
