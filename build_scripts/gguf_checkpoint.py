"""GGUF -> Hugging Face checkpoint: weights through transformers, the tokenizer from its own tables.

Used once by fetch_base.py. transformers (5.5) reads the weights of a GGUF well, but takes the
byte-level BPE tokenizer of a Llama for CodeLlama's: it adds tokens, prepends BOS, swaps the end
token and does not split digits. So the tokenizer is put together here from the vocabulary and
merges, with the splitting rules that the GGUF names: those of SmolLM, Qwen2 and Llama 3 are known.
What transformers would leave out without a word (scaled rotary embeddings, a sliding window,
experts) is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compllm.build_scripts.staging import saving
from compllm.errors import ArtefactError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTROL, _USER_DEFINED = 3, 4  # token types of a GGUF: special tokens, and words that stay whole
_FAMILIES = ("llama", "qwen2", "qwen3")
# Qwen2's words (llama.cpp, src/llama-vocab.cpp: LLAMA_VOCAB_PRE_TYPE_QWEN2).
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Llama 3's (LLAMA_VOCAB_PRE_TYPE_LLAMA3): up to three digits are a word.
_LLAMA3_WORDS = _QWEN2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_RULES = ("smollm", "qwen2", "llama-bpe")
# Strings whose token counts are known to differ when a splitting rule is missing.
_PROBES = ("The capital of France is Paris.", "2024-11-30: 12345 + 6789", "  naïve\n\tcafé ☕ 水")


def convert(gguf: Path, directory: Path) -> None:
    """Write config.json, model.safetensors (fp16), generation_config.json and the tokenizer.

    Raises ArtefactError for another kind of GGUF than the pinned one, ConfigError for a full disk.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
        fields = reader.fields
    except (ValueError, IndexError, OSError) as error:
        raise ArtefactError(f"{gguf.name} is no whole GGUF file: {error}") from error
    wanted = ("tokenizer.", "general.architecture", *(f"{family}." for family in _FAMILIES))
    metadata = {key: fields[key].contents() for key in fields if key.startswith(wanted)}
    family = metadata.get("general.architecture")
    if family not in _FAMILIES:
        raise ArtefactError(f"the GGUF holds a {family}: {', '.join(_FAMILIES)} are served")
    _check_is_read(metadata, [tensor.name for tensor in reader.tensors])
    tokenizer = build_tokenizer(metadata)
    _check_tokenizer(tokenizer, metadata)
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(metadata))
    _convert_weights(gguf, directory)
    _check_heads(metadata, directory)


def _check_is_read(metadata: Mapping[str, Any], tensors: Sequence[str]) -> None:
    """Raises ArtefactError for what transformers' reader of GGUF files leaves out."""
    family = metadata["general.architecture"]

    def value(key: str) -> Any:
        return metadata.get(f"{family}.{key}")

    length = value("context_length")
    heads, hidden = value("attention.head_count"), value("embedding_length")
    head_size = value("attention.key_length") or (hidden // heads if heads and hidden else None)
    window, rotary = value("attention.sliding_window"), value("rope.dimension_count")
    problem = ""
    if scaled := [name for name in tensors if name.startswith("rope_")]:
        problem = f"scaled rotary embeddings ({scaled[0]})"
    elif (scaling := value("rope.scaling.type")) not in (None, "none"):
        problem = f"rotary embeddings scaled by {scaling!r}"
    elif window and length and window < length:
        problem = f"a sliding window of {window} tokens"
    elif rotary and head_size and rotary != head_size:
        problem = f"rotary embeddings of {rotary} of the {head_size} dimensions of a head"
    elif value("expert_count"):
        problem = f"a mixture of {value('expert_count')} experts"
    if problem:
        raise ArtefactError(
            f"the GGUF has {problem}, which is not read from such a file: give the Hugging Face "
            "checkpoint instead"
        )


def _check_heads(metadata: Mapping[str, Any], directory: Path) -> None:
    """transformers takes a family's usual size of a head where the GGUF names another."""
    wanted = metadata.get(f"{metadata['general.architecture']}.attention.key_length")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    usual = config["hidden_size"] // config["num_attention_heads"]
    found = config.get("head_dim") or usual
    if wanted is not None and wanted != found:
        raise ArtefactError(
            f"the GGUF has heads of {wanted}, read were heads of {found}: give the Hugging Face "
            "checkpoint instead"
        )


def build_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The byte-level BPE of SmolLM, Qwen2 or Llama 3.

    SmolLM: every digit is a word of its own, then GPT-2's word pattern. Qwen2: a pattern of its
    own, on normalised text. Llama 3: that pattern with up to three digits a word, and a word that
    is a token needs no merges.

    The GGUF names the rule; llama.cpp (src/llama-vocab.cpp) spells the same patterns. Raises
    ArtefactError for another one.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models

    kind = (metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre"))
    if kind[0] != "gpt2" or kind[1] not in _RULES:
        raise ArtefactError(
            f"the GGUF's tokenizer is {kind}, known are 'gpt2' with {', '.join(_RULES)}: give the "
            "Hugging Face checkpoint instead"
        )
    tokens = metadata["tokenizer.ggml.tokens"]
    first_merges = (merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"])
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[(left, right) for left, right in first_merges],
            ignore_merges=kind[1] == "llama-bpe",
        )
    )
    _set_words(tokenizer, kind[1])
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind_ in zip(tokens, types, strict=True)
            if kind_ == _CONTROL
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, special=False, normalized=False)
            for token, kind_ in zip(tokens, types, strict=True)
            if kind_ == _USER_DEFINED
        ]
    )
    return tokenizer


def _set_words(tokenizer: Tokenizer, rule: object) -> None:
    """How text is split before merges apply."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    words = {"qwen2": _QWEN2_WORDS, "llama-bpe": _LLAMA3_WORDS}.get(str(rule))
    if words is not None:
        if rule == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        first = pre_tokenizers.Split(Regex(words), behavior="isolated", invert=False)
        second = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    else:
        first = pre_tokenizers.Digits(individual_digits=True)
        second = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, second])


def _check_tokenizer(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> None:
    """No token was added or renumbered, and text survives the way to ids and back."""
    tokens = metadata["tokenizer.ggml.tokens"]
    if tokenizer.get_vocab_size() != len(tokens):
        raise ArtefactError(
            f"tokenizer has {tokenizer.get_vocab_size()} tokens, the GGUF {len(tokens)}"
        )
    for text in _PROBES:
        back = tokenizer.decode(tokenizer.encode(text).ids)
        if back != text:
            raise ArtefactError(f"tokenizer does not give {text!r} back, but {back!r}")


def _tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    def token(name: str) -> str | None:
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return None if index is None else str(metadata["tokenizer.ggml.tokens"][index])

    family = metadata["general.architecture"]

    return {
        # Takes tokenizer.json as it stands; GPT2Tokenizer would rebuild its splitting.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata[f"{family}.context_length"],
        "chat_template": metadata.get("tokenizer.chat_template"),
    }


def _convert_weights(gguf: Path, directory: Path) -> None:
    """Dequantise to fp16: its rounding is far below the 4-bit quantisation of the source."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float16
        )
    except (RuntimeError, ValueError) as error:  # tensors of other sizes than the config's
        raise ArtefactError(
            f"transformers cannot read {gguf.name}: {error}: give the Hugging Face checkpoint "
            "instead"
        ) from error
    with saving("converting the base model", directory):
        model.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config.pop("_model_name_or_path", None)  # the GGUF's internal working title
    config["rms_norm_eps"] = float(f"{config['rms_norm_eps']:.6g}")  # 1e-5, stored there as float32
    _write_json(directory / "config.json", config)
    (directory / "model.safetensors").chmod(0o644)  # like the files beside it


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
