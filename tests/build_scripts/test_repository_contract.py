"""Every key, tensor, type and dimension of our repositories is upstream's: by comparison, whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2

from compllm.build_scripts.repository import core, make_upstream, upstream
from compllm.build_scripts.repository.contract import REQUIRED_KEYS, differences, tensor_of
from compllm.paths import resource_dir

_EXTRACT = Path(
    os.environ.get("COMPLLM_SHARED", Path(__file__).parents[3] / "shared"), "trtllm"
).joinpath("triton_models.json")

MODEL = core.CoreModel(
    name="tensorrt_llm",
    engine_dir=Path("/engines/base"),
    tokenizer_dir=Path("/engines/base/tokenizer"),
    max_batch_size=64,
    gpu_ids=(0, 1),
    kv_fraction=0.85,
    kv_tokens=40_000,
    lora=core.LoraCache(16, 0.5, 2 << 30),
    guided=core.GuidedDecoding(Path("/models/xgrammar_tokenizer_info.json")),
)


def _written() -> Any:
    """As a server reads it: made, rendered, parsed."""
    return core.parse(core.render(core.gpu_config(MODEL)))


@pytest.mark.skipif(not _EXTRACT.is_file(), reason="upstream's extract is not beside the checkout")
def test_our_list_is_made_from_the_extract_and_unchanged_since() -> None:
    made = make_upstream.render(make_upstream.make_upstream(_EXTRACT))
    assert upstream.UPSTREAM_FILE.read_text(encoding="utf-8") == made


def test_our_list_names_its_origin() -> None:
    assert upstream.core().version == "1.2.x"
    assert '"source": "triton_backend/all_models/' in upstream.UPSTREAM_FILE.read_text()


def test_gpu_configuration_is_upstreams_tensor_by_tensor() -> None:
    config = _written()
    assert differences(config) == []
    assert tuple(map(tensor_of, config.input)) == upstream.core().inputs
    assert tuple(map(tensor_of, config.output)) == upstream.core().outputs
    assert len(config.input) == 62
    assert len(config.output) == 21


def test_embedded_configuration_is_upstreams_with_fewer_outputs() -> None:
    config = core.parse(core.embedded_template())
    assert differences(config, is_embedded=True) == []
    assert tuple(map(tensor_of, config.input)) == upstream.core().inputs
    assert set(map(tensor_of, config.output)) < set(upstream.core().outputs)
    assert {"output_log_probs", "cum_log_probs"} <= {each.name for each in config.output}


def test_shipped_template_is_what_this_code_makes() -> None:
    shipped = resource_dir("triton_repo") / "tensorrt_llm" / "config.pbtxt"
    remedy = "run make_triton_repo.py --embedded-template"
    assert shipped.read_text(encoding="utf-8") == core.embedded_template(), remedy


def test_lora_config_has_the_four_columns_that_the_converter_emits() -> None:
    (tensor,) = (each for each in _written().input if each.name == "lora_config")
    assert list(tensor.dims) == [-1, 4]


def test_no_placeholder_is_left() -> None:
    assert "${" not in core.render(core.gpu_config(MODEL))


@pytest.mark.parametrize("key", REQUIRED_KEYS)
def test_guided_decoding_keys_are_there_without_guided_decoding(key: str) -> None:
    plain = core.CoreModel("tensorrt_llm", Path("/e"), Path("/t"), 1, (0,), 0.9)
    assert key in core.gpu_config(plain).parameters
    config = core.gpu_config(plain)
    del config.parameters[key]
    assert any(key in each for each in differences(config))


def test_what_keeps_its_default_is_left_out_not_empty() -> None:
    plain = core.CoreModel("tensorrt_llm", Path("/e"), Path("/t"), 1, (0,), 0.9)
    parameters = core.gpu_config(plain).parameters
    for key in ("lora_prefetch_dir", "max_tokens_in_paged_kv_cache", "max_attention_window_size"):
        assert key not in parameters


def test_log_probs_are_those_among_all_tokens() -> None:
    """Upstream's default divides by what top-k leaves: each greedy token has the probability 1."""
    assert _written().parameters["normalize_log_probs"].string_value == "false"


def _invent_input(config: Any) -> None:
    config.input.add(name="priority", data_type=model_config_pb2.TYPE_INT32, dims=[1])


def _invent_output(config: Any) -> None:
    config.output.add(name="text", data_type=model_config_pb2.TYPE_STRING, dims=[1])


def _invent_key(config: Any) -> None:
    config.parameters["kv_cache_size"].string_value = "1"


def _change_type(config: Any) -> None:
    config.input[0].data_type = model_config_pb2.TYPE_INT64


def _change_dim(config: Any) -> None:
    config.output[0].dims[0] = 1


def _drop_reshape(config: Any) -> None:
    next(each for each in config.input if each.name == "end_id").ClearField("reshape")


def _require(config: Any) -> None:
    config.input[0].optional = False


def _repeat(config: Any) -> None:
    config.output.add().CopyFrom(config.output[0])


def _remove(config: Any) -> None:
    del config.input[5]


def _unfill(config: Any) -> None:
    config.parameters["gpt_model_path"].string_value = "${engine_dir}"


def _couple(config: Any) -> None:
    config.model_transaction_policy.decoupled = False


def _unbatch(config: Any) -> None:
    config.max_batch_size = 0


@pytest.mark.parametrize(
    "spoil",
    [
        _invent_input,
        _invent_output,
        _invent_key,
        _change_type,
        _change_dim,
        _drop_reshape,
        _require,
        _repeat,
        _remove,
        _unfill,
        _couple,
        _unbatch,
    ],
)
def test_anything_invented_or_lost_is_found(spoil: Any) -> None:
    config = _written()
    spoil(config)
    assert len(differences(config)) == 1
