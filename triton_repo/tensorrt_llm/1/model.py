"""Triton's core model on the embedded engine: Python-backend objects in, `CoreModel` calls out.

Runs inside Triton's Python stub. All that needs no Triton is in
`compllm.frontends.triton`: `core_serving` and `core_tensors`.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from compllm.embedded.executor import Executor
from compllm.embedded.options import ExecutorOptions, Parameters
from compllm.errors import INVALID
from compllm.formats.lora_tensors import read_base_shape, read_engine_adapter
from compllm.frontends.triton.core_metrics import FAMILIES, Gauges
from compllm.frontends.triton.core_serving import CoreModel
from compllm.frontends.triton.metrics import Families
from compllm.frontends.triton.senders import TritonSender
from compllm.gc_freeze import freeze_startup_objects
from compllm.niceness import give_way


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = Parameters(
            {key: each["string_value"] for key, each in config["parameters"].items()}
        )
        engine_dir = Path(parameters.text("gpt_model_path"))
        options = ExecutorOptions.from_parameters(parameters)
        give_way(options.niceness)  # before the engine makes its threads: they inherit it
        base = read_base_shape(engine_dir)
        engine = Executor(engine_dir, replace(options, is_guide_warm=True))
        labels = {"model": args["model_name"], "version": args["model_version"]}
        families = Families(pb_utils.MetricFamily, FAMILIES)
        gauges = Gauges(families, labels, options.max_batch_size)
        self._model = CoreModel(
            engine,
            base,
            is_input_excluded=parameters.flag("exclude_input_in_output"),
            is_lora_cache=options.is_lora_cache,
            max_lora_rank=options.max_lora_rank,
            built_in=lambda task_id: read_engine_adapter(engine_dir, task_id),
            cancellation_check_period_s=parameters.number("cancellation_check_period_ms", 10) / 1e3,
            on_stats=gauges.publish,
        )
        freeze_startup_objects()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = TritonSender(pb_utils, request.get_response_sender())
            try:
                tensors = {each.name(): each.as_numpy() for each in request.inputs()}
            except Exception as error:  # malformed bytes of a string tensor, for one
                sender.fail(f"cannot read the inputs: {error}", INVALID)
                continue
            self._model.start(request.request_id(), tensors, sender)

    def finalize(self) -> None:
        self._model.close()
