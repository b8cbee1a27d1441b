"""Triton's `comp_llm` model: Python-backend objects in, `QueryModel` calls out.

Runs inside Triton's Python stub. All that needs no Triton is in
`compllm.frontends.triton`.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import triton_python_backend_utils as pb_utils

from compllm.errors import INVALID
from compllm.frontends.triton.comp_llm_metrics import FAMILIES, QueueGauges
from compllm.frontends.triton.comp_llm_serving import QueryModel, load
from compllm.frontends.triton.metrics import Families
from compllm.frontends.triton.senders import TritonSender
from compllm.gc_freeze import freeze_startup_objects


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        settings = {key: each["string_value"].strip() for key, each in parameters.items()}
        labels = {"model": args["model_name"], "version": args["model_version"]}
        gauges = QueueGauges(Families(pb_utils.MetricFamily, FAMILIES), labels)
        self._model = QueryModel(
            partial(load, settings["server_url"], settings["config_file"]),
            gauges.publish,
            lambda end: pb_utils.Logger.log_info(str(end)),
        )
        freeze_startup_objects()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = TritonSender(pb_utils, request.get_response_sender())
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
