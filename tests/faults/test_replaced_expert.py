"""13. A client sends weights under the id of a shipped expert: all users got wrong answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from core_client import Refused, infer

from compllm.formats.lora_tensors import read_engine_adapter
from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton


def test_a_client_cannot_replace_a_shipped_expert(
    server: ServerInfo, engine_dir: Path, task_ids: dict[str, int]
) -> None:
    task_id = task_ids["chemistry"]
    named = {"lora_task_id": np.array([[task_id]], np.uint64)}
    before = infer(server, named)
    tensors = read_engine_adapter(engine_dir, task_id)
    assert tensors is not None
    weights, config = tensors
    sent = named | {"lora_weights": weights[None], "lora_config": config[None]}
    assert infer(server, sent) == before  # the same content may be sent
    with pytest.raises(Refused, match="differ from the adapter that has this id"):
        infer(server, sent | {"lora_weights": -weights[None]})
    assert infer(server, named) == before


def test_an_id_of_a_client_keeps_its_first_content(
    server: ServerInfo, engine_dir: Path, task_ids: dict[str, int]
) -> None:
    tensors = read_engine_adapter(engine_dir, task_ids["biology"])
    assert tensors is not None
    weights, config = tensors
    sent = {
        "lora_task_id": np.array([[4711]], np.uint64),
        "lora_weights": weights[None],
        "lora_config": config[None],
    }
    first = infer(server, sent)
    with pytest.raises(Refused, match="differ from the adapter that has this id"):
        infer(server, sent | {"lora_weights": weights[None] * 2})
    assert infer(server, {"lora_task_id": sent["lora_task_id"]}) == first


def test_weights_larger_than_any_adapter_are_refused(server: ServerInfo) -> None:
    """800 MB were taken."""
    before = infer(server)
    sent = {
        "lora_task_id": np.array([[4712]], np.uint64),
        "lora_weights": np.ones((1, 8, 500_000), np.float16),
        "lora_config": np.array([[[0, 0, 8, 0]] * 8], np.int32),
    }
    with pytest.raises(Refused, match="takes at most"):
        infer(server, sent)
    assert infer(server) == before
