"""Upstream's llmapi model without a model: its tensors, its errors, its way to stream and to stop.

The text is the prompt's words in a circle, one a token; `[NAME]` of the adapter before each. A word
END ends it. What upstream does with a request (accumulated text, numbers as text, an answer to the
stopper and none to the stopped) is done here too, on one event loop in one thread as upstream does
it: a thread a request brings the server down, which cannot take that many senders at once.
"""

import asyncio
import json
import os
import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_PAUSE_S = 0.002  # a token


def _value(request: Any, name: str, default: Any = None) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return default
    array = tensor.as_numpy()
    if array.size != 1:
        raise ValueError(f"Expected a scalar tensor for tensor {name}")
    value = array.item(0)
    return value.decode() if isinstance(value, bytes) else value


def _adapter(request: Any) -> str | None:
    given = [_value(request, name) for name in ("lora_id", "lora_name", "lora_path")]
    if all(each is None for each in given):
        return None
    if any(each is None for each in given):
        raise ValueError("lora_id, lora_name, and lora_path must all be provided together")
    if not os.path.exists(given[2]):
        raise ValueError(f"lora_path does not exist on the Triton server's filesystem: {given[2]}")
    return str(given[1])


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        policy = json.loads(args["model_config"])["model_transaction_policy"]
        self._is_decoupled = policy["decoupled"]
        self._stops: dict[str, asyncio.Event] = {}  # of the loop's thread alone
        family = pb_utils.MetricFamily(
            name=f"stand_in_active_{args['model_name']}",
            description="requests under way",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self._family, self._active = family, family.Metric(labels={})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            asyncio.run_coroutine_threadsafe(self._take(request), self._loop)

    async def _take(self, request: Any) -> None:
        sender = request.get_response_sender()
        if _value(request, "stop", False):
            if (stop := self._stops.get(request.request_id())) is not None:
                stop.set()
            error = pb_utils.TritonError("Request cancelled by client")
            sender.send(pb_utils.InferenceResponse(error=error), flags=_FINAL)
            return
        stop = self._stops[request.request_id()] = asyncio.Event()
        self._active.increment(1)
        try:
            await self._generate(request, sender, stop)
        except Exception as error:
            failure = pb_utils.TritonError(f"Error generating request: {error}")
            sender.send(pb_utils.InferenceResponse(error=failure), flags=_FINAL)
        finally:
            self._active.increment(-1)
            self._stops.pop(request.request_id(), None)

    async def _generate(self, request: Any, sender: Any, stop: asyncio.Event) -> None:
        texts = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()
        is_streamed = _value(request, "streaming", False)
        if is_streamed and not self._is_decoupled:
            raise ValueError("Streaming is only supported in decoupled mode.")
        stops = pb_utils.get_input_tensor_by_name(request, "sampling_param_stop")
        words = texts[0].decode().split()
        name = _adapter(request)
        prefix = "" if name is None else f"[{name}]"
        text, reason = "", "length"
        for number in range(_value(request, "sampling_param_max_tokens", 16)):
            word = words[number % len(words)]
            await asyncio.sleep(_PAUSE_S)
            if stop.is_set():
                return  # upstream sends nothing more to a stopped request
            if word == "END":
                reason = "stop"
                break
            text += f"{prefix}{word} "
            found = [each.decode() for each in stops.as_numpy()] if stops is not None else []
            if any(each in text for each in found):
                text, reason = text.partition(found[0])[0], "stop"
                break
            if is_streamed:
                sender.send(self._response(request, text, None))
        sender.send(self._response(request, text, reason), flags=_FINAL)

    def _response(self, request: Any, text: str, reason: str | None) -> Any:
        tensors = [pb_utils.Tensor("text_output", np.array([text.encode()], np.object_))]
        if _value(request, "return_finish_reason", False):
            tensors.append(pb_utils.Tensor("finish_reason", np.array([str(reason)], np.object_)))
        if _value(request, "sampling_param_return_perf_metrics", False):
            numbers = {"kv_cache_reused_block": 3, "arrival_time_ns": 10**9}
            numbers |= {"first_token_time_ns": 2 * 10**9, "last_token_time_ns": 3 * 10**9}
            tensors += [
                pb_utils.Tensor(name, np.array([value], np.object_))
                for name, value in numbers.items()
            ]
        return pb_utils.InferenceResponse(tensors)

    def finalize(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
