"""Triton's own warm-up requests for a core model: what it answers before it is ready.

The first plan compiles its guide inside the executor's loop, and everybody waits for it; the first
request of an adapter carries its weights. So the server asks these questions itself while the
model loads: each adapter once, with its weights, then a plan under the planner's own guide. Their
prompts begin as real ones do and leave those KV blocks filled. A request that fails ends the load.

The inputs are those of the runtime's own client, one file each in the model's folder `warmup`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2

from compllm.assembly import make_generator
from compllm.backend import GenerateRequest
from compllm.backends import wire
from compllm.backends.lora_client import AdapterWeights
from compllm.backends.tokenizer import Tokenizer
from compllm.catalogue import Catalogue
from compllm.config import Config
from compllm.prompts import node_prompt
from compllm.types import Query, SamplingParams

FOLDER = "warmup"  # Triton's name for it, in the model's folder
_QUESTION = "What is the atomic number of iron, and what is 2 plus 3?"
_MAX_TOKENS = 8


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What the server is to ask its core models.

    weights: gives an adapter's tensors by task id. has_guide: the engines have guided decoding.
    """

    catalogue: Catalogue
    config: Config
    tokenizer: Tokenizer
    weights: AdapterWeights
    has_guide: bool = True

    def add(self, config: Any, folder: Path, adapter_ids: Sequence[int] = ()) -> None:
        """Add the requests to a ModelConfig, and their files to the model's `folder`.

        adapter_ids: of the adapters that this model serves.
        """
        requests = [*self._experts(config.name, adapter_ids), *self._plan(config.name)]
        if not requests:
            return
        (folder / FOLDER).mkdir()
        sent: set[int] = set()
        for request in requests:
            adapter_id = request.adapter_id
            is_new = adapter_id is not None and adapter_id not in sent
            weights = self.weights(adapter_id) if is_new and adapter_id is not None else None
            if adapter_id is not None:
                sent.add(adapter_id)
            message = wire.inference_message(
                request,
                request.id,
                self.tokenizer.encode(request.prompt),
                self.tokenizer.special,
                is_streamed=request.is_streamed,
                weights=weights,
            )
            _add(config, folder / FOLDER, request.id, message)

    def _experts(self, model: str, adapter_ids: Sequence[int]) -> Iterator[GenerateRequest]:
        """The model without an adapter, and each of its adapters."""
        catalogue = self.catalogue
        everyone = (catalogue.base, *catalogue.experts)
        of_adapter = {each.adapter_id: each for each in everyone if each.model == model}
        for adapter_id in (None, *adapter_ids):
            expert = of_adapter.get(adapter_id, catalogue.base)
            yield GenerateRequest(
                "base" if adapter_id is None else f"adapter-{adapter_id}",
                node_prompt(expert, _QUESTION, template=catalogue.template),
                SamplingParams(max_tokens=_MAX_TOKENS),
                model,
                adapter_id,
            )

    def _plan(self, model: str) -> Iterator[GenerateRequest]:
        generator = make_generator(self.catalogue, self.config)
        if generator.model == model:
            request = generator.request(Query(_QUESTION))
            yield replace(
                request,
                id="plan",
                sampling=replace(request.sampling, max_tokens=_MAX_TOKENS),
                guide=request.guide if self.has_guide else None,
            )


def _add(config: Any, folder: Path, name: str, message: Any) -> None:
    sample = config.model_warmup.add(name=name, batch_size=1)
    for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=True):
        file = f"{name}-{tensor.name}"
        (folder / file).write_bytes(raw)
        given = sample.inputs[tensor.name]
        kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
        given.data_type = model_config_pb2.DataType.Value(f"TYPE_{kind}")
        given.dims.extend(tensor.shape[1:])  # Triton adds the batch dimension
        given.input_data_file = file
