"""Triton's core model on the embedded engine: Python-backend objects in, `CoreModel` calls out.

Runs inside Triton's Python stub. Everything that can be thought about without Triton is in
`compllm.frontends.triton`: `core_serving` and `core_tensors`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from compllm.embedded.executor import Executor
from compllm.embedded.options import ExecutorOptions
from compllm.errors import INVALID, ArtefactError, ConfigError, Situation
from compllm.formats.lora_tensors import read_base_shape
from compllm.frontends.triton.core_metrics import FAMILIES, Gauges
from compllm.frontends.triton.core_serving import CoreModel
from compllm.frontends.triton.metrics import Families
from compllm.gc_freeze import freeze_startup_objects
from compllm.niceness import give_way

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class _Sender:
    def __init__(self, sender: Any) -> None:
        self._sender = sender

    def send(self, tensors: dict[str, Any] | None, *, is_final: bool) -> None:
        flags = _FINAL if is_final else 0
        if tensors is None:
            self._sender.send(flags=flags)
            return
        arrays = [pb_utils.Tensor(name, array) for name, array in tensors.items()]
        self._sender.send(pb_utils.InferenceResponse(arrays), flags=flags)

    def fail(self, message: str, situation: Situation) -> None:
        code = getattr(pb_utils.TritonError, situation.triton_code)
        error = pb_utils.TritonError(message, code)
        self._sender.send(pb_utils.InferenceResponse(error=error), flags=_FINAL)

    def is_cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        config = json.loads(args["model_config"])
        settings = _Settings(
            {key: each["string_value"] for key, each in config["parameters"].items()}
        )
        engine_dir = Path(settings.text("gpt_model_path"))
        options = settings.options()
        give_way(options.niceness)  # before the engine makes its threads: they inherit it
        base = read_base_shape(engine_dir)
        engine = Executor(engine_dir, options)
        labels = {"model": args["model_name"], "version": args["model_version"]}
        families = Families(pb_utils.MetricFamily, FAMILIES)
        gauges = Gauges(families, labels, options.max_batch_size)
        self._model = CoreModel(
            engine,
            base,
            is_input_excluded=settings.flag("exclude_input_in_output"),
            is_lora_cache=options.is_lora_cache,
            cancellation_check_period_s=settings.number("cancellation_check_period_ms", 10) / 1e3,
            on_stats=gauges.publish,
        )
        freeze_startup_objects()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = _Sender(request.get_response_sender())
            try:
                tensors = {each.name(): each.as_numpy() for each in request.inputs()}
            except Exception as error:  # malformed bytes of a string tensor, for one
                sender.fail(f"cannot read the inputs: {error}", INVALID)
                continue
            self._model.start(request.request_id(), tensors, sender)

    def finalize(self) -> None:
        self._model.close()


class _Settings:
    """The `parameters` of config.pbtxt: strings, empty where left to the default."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def text(self, name: str) -> str:
        return self._values.get(name, "").strip()

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.text(name).lower()
        if value not in ("", "true", "1", "false", "0"):
            raise ConfigError(f"parameter {name} is {value!r}: it takes true or false")
        return value in ("true", "1") if value else default

    def number(self, name: str, default: int) -> int:
        value = self.text(name)
        if value and not (value.isdecimal() and int(value) > 0):
            raise ConfigError(f"parameter {name} is {value!r}: it takes a whole number above 0")
        return int(value) if value else default

    def options(self) -> ExecutorOptions:
        """TensorRT-LLM's own names, then `executor_options`: any of ExecutorOptions, as JSON."""
        if self.number("max_beam_width", 1) != 1:
            raise ConfigError("parameter max_beam_width must be 1: beam search is not supported")
        default = ExecutorOptions()
        chosen: dict[str, Any] = {
            "kv_cache_tokens": self.number("max_tokens_in_paged_kv_cache", default.kv_cache_tokens),
            "is_prefix_reused": self.flag("enable_kv_cache_reuse", True),
        }
        try:
            more = json.loads(self.text("executor_options") or "{}")
            chosen |= {k: tuple(v) if isinstance(v, list) else v for k, v in more.items()}
            return ExecutorOptions(**chosen)
        except (ValueError, TypeError, AttributeError) as error:
            raise ArtefactError(f"parameter executor_options is not usable: {error}") from error
