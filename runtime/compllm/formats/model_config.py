"""config.json of a checkpoint: every key is used, known to change nothing, or refused by name.

A key that is passed over in silence gives wrong answers: transformers would compute something else.
Defaults are those of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compllm.errors import ArtefactError
from compllm.formats.json_files import words
from compllm.formats.shape import ATTENTION_MODULES, MLP_MODULES, BaseShape

FAMILIES = {  # and their model_type
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MistralForCausalLM": "mistral",
    "SmolLM3ForCausalLM": "smollm3",
}
ARCHITECTURES = tuple(FAMILIES)  # what the embedded engine takes
_MISTRAL_WINDOW = 4096  # where a config has no such key; null is none
_DEFAULT_RMS_EPS = 1e-6

_SIZES = words(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim vocab_size"
)
_CHECKED = words(
    "architectures model_type hidden_act rms_norm_eps max_position_embeddings "
    "original_max_position_embeddings tie_word_embeddings attention_bias mlp_bias rope_theta "
    "rope_scaling rope_parameters use_sliding_window sliding_window max_window_layers layer_types "
    "eos_token_id quantization_config no_rope_layers no_rope_layer_interval"
)
# Of training, of saving, of generate() and of other kinds of model.
_WITHOUT_EFFECT = words(
    "attention_dropout initializer_range use_cache pretraining_tp dtype torch_dtype "
    "transformers_version bos_token_id pad_token_id unk_token_id sep_token_id return_dict "
    "output_attentions output_hidden_states output_scores return_dict_in_generate torchscript "
    "pruned_heads chunk_size_feed_forward id2label label2id problem_type tokenizer_class prefix "
    "finetuning_task is_decoder cross_attention_hidden_size task_specific_params "
    "decoder_start_token_id forced_bos_token_id forced_eos_token_id suppress_tokens "
    "begin_suppress_tokens tie_encoder_decoder use_bfloat16 tf_legacy_loss remove_invalid_values "
    "typical_p max_length min_length do_sample early_stopping num_beams num_beam_groups "
    "diversity_penalty temperature top_k top_p repetition_penalty length_penalty "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences "
    "exponential_decay_length_penalty attn_implementation gradient_checkpointing "
    "is_llama_config transformers.js_config unsloth_fixed unsloth_version max_sequence_length "
    "bos_token eos_token pad_token language license"
)
# Key -> what it asks for. Any value but false, null or empty is refused.
_REFUSED = {
    "auto_map": "code of the checkpoint's own",
    "quantization": "quantised weights: give the full-precision checkpoint",
    "compression_config": "compressed weights: give the full-precision checkpoint",
    "rope_interleaved": "rotary embeddings in the interleaved form",
    "use_mrope": "rotary embeddings in several dimensions",
    "is_encoder_decoder": "an encoder",
    "add_cross_attention": "cross-attention",
}
_ROPE_NUMBERS = {  # kind -> the numbers it cannot do without
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_ROPE_KEYS = words(
    "rope_theta factor low_freq_factor high_freq_factor original_max_position_embeddings "
    "attention_factor beta_fast beta_slow mscale mscale_all_dim partial_rotary_factor"
)


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """What a checked config.json says of the tensors."""

    shape: BaseShape
    is_tied: bool  # the output matrix is the embedding
    biased: frozenset[str]  # linear layers with a bias
    has_head_norms: bool = False  # a norm over each head of queries and keys
    rotated: tuple[bool, ...] = ()  # by layer: whether it has rotary embeddings


def check_config(
    config: Mapping[str, Any], *, name: str = "", supported: tuple[str, ...] = ARCHITECTURES
) -> DecoderConfig:
    """The decoder that `config` describes. name: of the model. supported: architectures out of
    FAMILIES.

    Raises ArtefactError that names the key for everything that would be computed otherwise than
    transformers does it, or not at all.
    """
    architecture = _architecture(config, supported)
    _check_keys(config)
    shape = BaseShape.from_config(config, name=name)
    if shape.head_dim % 2:
        raise ArtefactError(f"config.json: head_dim is {shape.head_dim}: it must be even")
    activation = _given(config, "hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ArtefactError(f"config.json: hidden_act is {activation!r}: only 'silu' is computed")
    rms_norm_eps(config)
    positions = _number(config.get("max_position_embeddings"), "max_position_embeddings", kind=int)
    _check_rope(config)
    _check_window(config, architecture, int(positions), shape.num_layers)
    id_list(config.get("eos_token_id"), "config.json: eos_token_id", shape.vocab)
    return DecoderConfig(
        shape,
        _flag(config, "tie_word_embeddings", default=architecture == "SmolLM3ForCausalLM"),
        _biased(config, architecture),
        architecture == "Qwen3ForCausalLM",
        _rotated(config, architecture, shape.num_layers),
    )


def rms_norm_eps(config: Mapping[str, Any]) -> float:
    """Added to the mean square in every norm. Raises ArtefactError."""
    return _number(_given(config, "rms_norm_eps", _DEFAULT_RMS_EPS), "rms_norm_eps")


def id_list(value: object, what: str, vocab: int) -> list[int]:
    """Token ids of a config: a number, several or none. Raises ArtefactError that names `what`."""
    ids: list[int] = value if isinstance(value, list) else [] if value is None else [value]  # type: ignore[list-item]
    for each in ids:
        if type(each) is not int or not 0 <= each < vocab:
            raise ArtefactError(f"{what} is {value!r}: expected token ids below {vocab}")
    return ids


def _architecture(config: Mapping[str, Any], supported: tuple[str, ...]) -> str:
    given = config.get("architectures") or []
    names = given if isinstance(given, list) else [given]
    architecture = next((each for each in supported if each in names), None)
    if architecture is None:
        seen = ", ".join(map(str, names)) or "model of unknown architecture"
        raise ArtefactError(f"it is a {seen}; supported are {', '.join(supported)}")
    family = config.get("model_type")
    if family != FAMILIES[architecture]:
        raise ArtefactError(
            f"config.json: model_type is {family!r}: of a {architecture} it is "
            f"{FAMILIES[architecture]!r}"
        )
    return str(architecture)


def _check_keys(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config") is not None:
        raise ArtefactError(
            f"it is quantised already ({config['quantization_config']}): "
            "give the full-precision checkpoint, the engine build quantises it itself"
        )
    for key, refused in _REFUSED.items():
        if config.get(key):
            raise ArtefactError(f"config.json: {key} is {config[key]!r}: not served: {refused}")
    if config.get("partial_rotary_factor") not in (None, 1):
        raise ArtefactError(
            f"config.json: partial_rotary_factor is {config['partial_rotary_factor']!r}: "
            "only whole heads are rotated"
        )
    known = _SIZES | _CHECKED | _WITHOUT_EFFECT | _REFUSED.keys() | {"partial_rotary_factor"}
    for key in sorted(config.keys() - known):
        # A null asks for nothing; keys that begin with _ are transformers' own notes.
        if config[key] is not None and not key.startswith("_"):
            raise ArtefactError(
                f"config.json: the key {key} ({config[key]!r}) is not known. If it changes nothing "
                "of what the model computes, remove it"
            )


def _check_rope(config: Mapping[str, Any]) -> None:
    if config.get("rope_theta") is not None:
        _number(config["rope_theta"], "rope_theta")
    if config.get("original_max_position_embeddings") is not None:
        _number(
            config["original_max_position_embeddings"], "original_max_position_embeddings", kind=int
        )
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise ArtefactError(f"config.json: {key} is {value!r}, not an object")
        _check_rope_values(key, value)


def _check_rope_values(key: str, values: Mapping[str, Any]) -> None:
    kind = values.get("rope_type", values.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE_NUMBERS:
        raise ArtefactError(
            f"config.json: {key} asks for {kind!r} rope; supported are "
            f"{', '.join(_ROPE_NUMBERS)}, whose frequencies do not change with the length"
        )
    for needed in _ROPE_NUMBERS[kind]:
        _number(values.get(needed), f"{key}.{needed} of {kind!r} rope")
    for name, value in values.items():
        if name in ("rope_type", "type") or value is None:
            continue
        if name == "truncate" and isinstance(value, bool):
            continue
        if name not in _ROPE_KEYS:
            raise ArtefactError(f"config.json: the key {key}.{name} ({value!r}) is not known")
        if _number(value, f"{key}.{name}") != 1 and name == "partial_rotary_factor":
            raise ArtefactError(f"config.json: {key}.{name} is {value!r}: only 1 is computed")


def _check_window(
    config: Mapping[str, Any], architecture: str, positions: int, num_layers: int
) -> None:
    """Refuses layers that look back on less than the longest sequence."""
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    if architecture == "MistralForCausalLM":
        window = config.get("sliding_window", _MISTRAL_WINDOW)
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != num_layers:
            raise ArtefactError(f"config.json: layer_types is {kinds!r}, not {num_layers} names")
        odd = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
        if odd:
            raise ArtefactError(f"config.json: layer_types asks for {odd[0]!r}: not served")
        has_window = "sliding_attention" in kinds
    else:
        # Qwen and SmolLM3 have a switch; the others take a window that is named.
        has_switch = architecture[:4] in ("Qwen", "Smol")
        is_asked = _flag(config, "use_sliding_window", default=not has_switch)
        first = _given(config, "max_window_layers", 28 if has_switch else 0)
        _number(first, "max_window_layers", kind=int, least=0)
        has_window = is_asked and window is not None and first < num_layers
    if not has_window:
        return
    if int(_number(window, "sliding_window", kind=int)) < positions:
        raise ArtefactError(
            f"config.json: sliding_window is {window}: layers that look back on less than "
            f"max_position_embeddings ({positions}) are not served. Up to the window the model is "
            f"the same: set max_position_embeddings to {window}"
        )


def _rotated(config: Mapping[str, Any], architecture: str, num_layers: int) -> tuple[bool, ...]:
    """By layer. SmolLM3 rotates all layers but every fourth, or those that it lists (0: not)."""
    listed, every = config.get("no_rope_layers"), config.get("no_rope_layer_interval")
    if architecture != "SmolLM3ForCausalLM":
        if listed or every:
            raise ArtefactError(
                f"config.json: no_rope_layers and no_rope_layer_interval belong to SmolLM3, not to "
                f"a {architecture}"
            )
        return (True,) * num_layers
    if listed is None:
        key = "no_rope_layer_interval"
        interval = int(_number(_given(config, key, 4), key, kind=int))
        return tuple(layer % interval != 0 for layer in range(1, num_layers + 1))
    is_list = isinstance(listed, list) and len(listed) == num_layers
    if not is_list or any(each not in (0, 1) for each in listed):
        raise ArtefactError(
            f"config.json: no_rope_layers is {listed!r}: expected {num_layers} of 0 and 1"
        )
    return tuple(map(bool, listed))


def _biased(config: Mapping[str, Any], architecture: str) -> frozenset[str]:
    """As transformers has them: Qwen2's are fixed and Mistral has none, whatever the config says.
    Those of the MLP are Llama's and SmolLM3's alone."""
    attention, mlp = _flag(config, "attention_bias"), _flag(config, "mlp_bias")
    if architecture == "Qwen2ForCausalLM":
        return frozenset(ATTENTION_MODULES) - {"o_proj"}
    if architecture == "MistralForCausalLM":
        return frozenset()
    mlp = mlp and architecture != "Qwen3ForCausalLM"
    return frozenset((*ATTENTION_MODULES * attention, *MLP_MODULES * mlp))


def _flag(config: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    value = _given(config, key, default)
    if not isinstance(value, bool):
        raise ArtefactError(f"config.json: {key} is {value!r}, not true or false")
    return value


def _given(config: Mapping[str, Any], key: str, default: Any) -> Any:
    value = config.get(key)
    return default if value is None else value


def _number(value: object, what: str, *, kind: type = float, least: float | None = None) -> float:
    """A number above 0, or from `least` on."""
    is_number = isinstance(value, int if kind is int else int | float)
    if is_number and not isinstance(value, bool) and math.isfinite(value):  # type: ignore[arg-type]
        number = float(value)  # type: ignore[arg-type]
        if number > 0 or (least is not None and number >= least):
            return number
    noun = "a whole number" if kind is int else "a number"
    raise ArtefactError(f"config.json: {what} is {value!r}, not {noun} above 0")
