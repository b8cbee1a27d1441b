"""A core model's configuration beside upstream's own list: every name, type, dimension and key.

What make_triton_repo.py runs over each file it wrote, after reading it back from disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tritonclient.grpc import model_config_pb2

from compllm.build_scripts.repository import upstream
from compllm.build_scripts.repository.core import EMBEDDED_ONLY
from compllm.build_scripts.repository.upstream import Tensor

# Any value, even an empty one, but there: else the C++ instance does not start.
REQUIRED_KEYS = ("tokenizer_dir", "guided_decoding_backend", "xgrammar_tokenizer_info_path")
# A client that lists outputs has to name both; the others list what upstream's build can fill.
_REQUIRED_OUTPUTS = frozenset(("output_ids", "sequence_length"))


def differences(config: Any, *, is_embedded: bool = False) -> list[str]:
    """Every way in which a ModelConfig is not upstream's core model; empty when it is.

    is_embedded: outputs may be missing, and the embedded engine's own parameter may be there.
    """
    core = upstream.core()
    keys = set(core.parameters) | (EMBEDDED_ONLY if is_embedded else set())
    required = {t.name for t in core.outputs} if not is_embedded else _REQUIRED_OUTPUTS
    return [
        *_tensors("input", config.input, core.inputs, {t.name for t in core.inputs}),
        *_tensors("output", config.output, core.outputs, required),
        *(f"parameter {key} is not upstream's" for key in sorted(set(config.parameters) - keys)),
        *_settings(config, is_embedded=is_embedded),
    ]


def tensor_of(message: Any) -> Tensor:
    """A ModelInput or ModelOutput as a Tensor."""
    return Tensor(
        name=message.name,
        data_type=model_config_pb2.DataType.Name(message.data_type),
        dims=tuple(message.dims),
        is_optional=getattr(message, "optional", False),
        is_ragged=getattr(message, "allow_ragged_batch", False),
        reshape=tuple(message.reshape.shape) if message.HasField("reshape") else None,
    )


def _tensors(
    kind: str, found: Iterable[Any], listed: Iterable[Tensor], required: Iterable[str]
) -> Iterator[str]:
    known: Mapping[str, Tensor] = {tensor.name: tensor for tensor in listed}
    seen: set[str] = set()
    for tensor in map(tensor_of, found):
        if tensor.name in seen:
            yield f"{kind} {tensor.name} is declared twice"
        elif tensor.name not in known:
            yield f"{kind} {tensor.name} is not upstream's"
        elif tensor != known[tensor.name]:
            yield f"{kind} {tensor.name} is {tensor}, upstream has {known[tensor.name]}"
        seen.add(tensor.name)
    yield from (f"{kind} {name} is missing" for name in sorted(set(required) - seen))


def _settings(config: Any, *, is_embedded: bool) -> Iterator[str]:
    if not config.model_transaction_policy.decoupled:
        yield "it is not decoupled: nothing could be streamed"
    if config.max_batch_size < 1:
        yield f"max_batch_size is {config.max_batch_size}: scalars are sent with a batch dimension"
    if is_embedded:
        return
    for key in REQUIRED_KEYS:
        if key not in config.parameters:
            yield f"parameter {key} is missing: the C++ instance does not start without it"
    for key, parameter in config.parameters.items():
        if "${" in parameter.string_value:
            yield f"parameter {key} is unfilled: {parameter.string_value}"
