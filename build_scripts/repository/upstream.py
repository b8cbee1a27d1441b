"""What TensorRT-LLM 1.2 declares for its core Triton model: tensors, parameters, placeholders.

Read from upstream.json, which names the source file and the commit it was extracted from. Nothing
of a repository's configuration is written down anywhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

UPSTREAM_FILE = Path(__file__).with_name("upstream.json")

# Left unfilled these make the file unparsable, so they are no parameters but part of the tensors.
# FP32 logits and FP16 tables are what upstream's own CI fills in.
DATA_TYPES = {
    "encoder_input_features_data_type": "TYPE_FP16",
    "logits_datatype": "TYPE_FP32",
    "prompt_embedding_table_data_type": "TYPE_FP16",
}
# The one place where upstream's file is wrong: its own converter emits 4 columns (the last is
# is_dora), the file says 3. Upstream's CI changes it too.
CORRECTED_DIMS: dict[str, tuple[int, ...]] = {"lora_config": (-1, 4)}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output; dims without the batch dimension."""

    name: str
    data_type: str  # TYPE_...
    dims: tuple[int, ...]
    is_optional: bool = False
    is_ragged: bool = False
    reshape: tuple[int, ...] | None = None  # None: there is none


@dataclass(frozen=True, slots=True)
class Upstream:
    """The core model as upstream ships it, data types filled in and dims corrected."""

    version: str  # of the release line
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, str]  # key -> upstream's value, mostly a ${placeholder}


@cache
def core() -> Upstream:
    data: dict[str, Any] = json.loads(UPSTREAM_FILE.read_text(encoding="utf-8"))
    return Upstream(
        version=data["origin"]["version"],
        inputs=tuple(_tensor(each) for each in data["inputs"]),
        outputs=tuple(_tensor(each) for each in data["outputs"]),
        parameters=data["parameter_templates"],
    )


def _tensor(value: Mapping[str, Any]) -> Tensor:
    name, data_type, reshape = value["name"], value["data_type"], value.get("reshape")
    if data_type.startswith("${"):
        data_type = DATA_TYPES[data_type[2:-1]]
    return Tensor(
        name=name,
        data_type=data_type,
        dims=CORRECTED_DIMS.get(name, tuple(value["dims"])),
        is_optional=value.get("optional", False),
        is_ragged=value.get("allow_ragged_batch", False),
        reshape=None if reshape is None else tuple(reshape),
    )
