"""Triton's `comp_llm` model: Python-backend objects in, `FaceModel` calls out.

Runs inside Triton's Python stub. Everything that can be thought about without Triton is in
`compllm.frontends.triton`.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import triton_python_backend_utils as pb_utils

from compllm.errors import INVALID, Situation
from compllm.frontends.triton.comp_llm_metrics import FAMILIES, QueueGauges
from compllm.frontends.triton.comp_llm_serving import FaceModel, load
from compllm.frontends.triton.metrics import Families
from compllm.gc_freeze import freeze_startup_objects

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class _Sender:
    def __init__(self, sender: Any) -> None:
        self._sender = sender

    def send(self, tensors: dict[str, Any], *, is_final: bool) -> None:
        arrays = [pb_utils.Tensor(name, array) for name, array in tensors.items()]
        self._sender.send(pb_utils.InferenceResponse(arrays), flags=_FINAL if is_final else 0)

    def fail(self, message: str, situation: Situation) -> None:
        code = getattr(pb_utils.TritonError, situation.triton_code)
        error = pb_utils.TritonError(message, code)
        self._sender.send(pb_utils.InferenceResponse(error=error), flags=_FINAL)

    def is_cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        settings = {key: each["string_value"].strip() for key, each in parameters.items()}
        labels = {"model": args["model_name"], "version": args["model_version"]}
        gauges = QueueGauges(Families(pb_utils.MetricFamily, FAMILIES), labels)
        self._model = FaceModel(
            partial(load, settings["server_url"], settings["config_file"]),
            gauges.publish,
            lambda end: pb_utils.Logger.log_info(str(end)),
        )
        freeze_startup_objects()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = _Sender(request.get_response_sender())
            try:
                tensors = {each.name(): each.as_numpy() for each in request.inputs()}
                parameters = json.loads(request.parameters() or "{}")
            except Exception as error:  # malformed bytes of a string tensor, for one
                sender.fail(f"cannot read the inputs: {error}", INVALID)
                pb_utils.Logger.log_info(f"query {INVALID.name}: its inputs cannot be read")
                continue
            self._model.start(tensors, parameters, sender, request.request_id())

    def finalize(self) -> None:
        self._model.close()
