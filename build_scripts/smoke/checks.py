"""What a check is, and what all checks share: requests to make, answers to read, gauges."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from compllm.backends.tokenizer import Tokenizer
from compllm.backends.wire import AdapterTensors
from compllm.build_scripts.smoke.client import Array, Client, Response, Tensors

Status = Literal["pass", "fail", "skip"]
_POLL_S = 0.05


class Failed(Exception):
    """The assumption does not hold; the text says what was seen."""


class Skipped(Exception):
    """It cannot be tried here; the text says why."""


@dataclass(frozen=True, slots=True)
class Result:
    """How one check ended."""

    name: str
    status: Status
    assumption: str
    found: str


@dataclass(slots=True)
class Bench:
    """The server under test, and what is known of it."""

    client: Client
    config: Any  # ModelConfig of the core model
    tokenizer: Tokenizer | None
    adapters: dict[int, AdapterTensors]  # by lora_task_id
    metrics_url: str  # empty: none
    http_url: str  # empty: none
    reference: dict[str, Any] | None = None  # answers of another engine; see reference.py
    seed: int = 0  # another seed makes prompts that no cache knows
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    @property
    def is_embedded(self) -> bool:
        """Our own twin of TensorRT-LLM rather than itself."""
        return bool(self.config.backend == "python")

    @property
    def model(self) -> str:
        return str(self.config.name)

    def parameter(self, key: str) -> str:
        parameters = self.config.parameters
        return str(parameters[key].string_value) if key in parameters else ""

    def prompt(self, num_tokens: int = 12) -> list[int]:
        """Random tokens, new ones at each call."""
        top = self.tokenizer.vocab_size if self.tokenizer is not None else 1000
        return [int(each) for each in self._rng.integers(min(100, top // 2), top, num_tokens)]

    def ask(self, tensors: Tensors) -> list[Response]:
        return self.client.ask(tensors, self.model)

    def ask_all(self, requests: Sequence[Tensors]) -> list[list[Response]]:
        return self.client.ask_all(requests, self.model)

    def gauge(self, family: str, label: str) -> float:
        """The value of a metric whose labels hold `label`. Raises Skipped without metrics."""
        values = self.gauges(family, label)
        if not values:
            raise Failed(f"metric {family}{{{label}}} is not there")
        return sum(values)

    def gauges(self, family: str, label: str) -> list[float]:
        if not self.metrics_url:
            raise Skipped("no metrics address: give --metrics-url")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.metrics_url, timeout=10) as answer:
            text = answer.read().decode()
        found = re.findall(rf"^{family}{{([^}}]*)}} (\S+)$", text, re.MULTILINE)
        mine = [(labels, value) for labels, value in found if f'model="{self.model}"' in labels]
        return [float(value) for labels, value in mine if label in labels]

    def wait_active(self, limit_s: float) -> None:
        """Wait until the server shows an active request: its gauges are set a few times a
        second."""
        self._wait(limit_s, lambda active: active > 0, "no request became active")

    def wait_idle(self, limit_s: float) -> float:
        """Seconds until no request is active. Raises Failed after `limit_s`."""
        return self._wait(limit_s, lambda active: active == 0, "requests are still active")

    def _wait(self, limit_s: float, is_so: Callable[[float], bool], otherwise: str) -> float:
        start = time.monotonic()
        while not is_so(self.gauge("nv_trt_llm_request_metrics", 'request_type="active"')):
            if time.monotonic() - start > limit_s:
                raise Failed(f"{otherwise} after {limit_s:g} s")
            time.sleep(_POLL_S)
        return time.monotonic() - start


@dataclass(frozen=True, slots=True)
class Check:
    """One assumption. `run` gives what was found, or raises Failed or Skipped."""

    name: str
    assumption: str
    run: Callable[[Bench], str]
    # More than one where a fast engine may be done before the client, starved, has asked to stop.
    num_attempts: int = 1


def run_check(check: Check, bench: Bench) -> Result:
    """Never raises but for an interruption: a broken check is a failed one."""
    result = _attempt(check, bench)
    for _ in range(check.num_attempts - 1):
        if result.status == "fail":
            result = _attempt(check, bench)
    return result


def _attempt(check: Check, bench: Bench) -> Result:
    status: Status
    try:
        status, found = "pass", check.run(bench)
    except Skipped as reason:
        status, found = "skip", str(reason)
    except Failed as reason:
        status, found = "fail", str(reason)
    except Exception as error:
        status, found = "fail", f"{type(error).__name__}: {error}"
    return Result(check.name, status, check.assumption, found)


# Requests


def request(prompt: Sequence[int], max_tokens: int = 16, **more: Any) -> dict[str, Array]:
    """A greedy request; further inputs by name, as arrays."""
    return {
        "input_ids": np.array([prompt], np.int32),
        "input_lengths": ints(len(prompt)),
        "request_output_len": ints(max_tokens),
        "runtime_top_k": ints(1),
        "exclude_input_in_output": flag(True),
        **more,
    }


def ints(value: int) -> Array:
    return np.array([[value]], np.int32)


def flag(value: bool) -> Array:
    return np.array([[value]], np.bool_)


def floats(value: float) -> Array:
    return np.array([[value]], np.float32)


def ids64(value: int) -> Array:
    return np.array([[value]], np.uint64)


def text(value: str) -> Array:
    return np.array([[value]], np.object_)


# Answers


def whole(responses: Sequence[Response]) -> list[int]:
    """All tokens of one request's responses. Raises Failed for an error."""
    refuse_errors(responses)
    return [token for response in responses for token in tokens(response)]


def tokens(response: Response) -> list[int]:
    """The tokens of one response; none where it has no tensors."""
    if "output_ids" not in response.tensors:
        return []
    ids = response.tensors["output_ids"].reshape(-1)
    return [int(each) for each in ids[: int(response.tensors["sequence_length"].reshape(-1)[0])]]


def refuse_errors(responses: Sequence[Response]) -> None:
    for response in responses:
        if response.error:
            raise Failed(f"an error came: {response.error}")


def error_of(responses: Sequence[Response], what: str) -> str:
    """The error that has to be there."""
    for response in responses:
        if response.error:
            return response.error
    raise Failed(f"{what} was accepted")


def number(responses: Sequence[Response], name: str) -> int:
    """An output of one value, from the last response that has it."""
    for response in reversed(responses):
        if name in response.tensors:
            return int(response.tensors[name].reshape(-1)[0])
    raise Failed(f"output {name} did not come")


def expect(is_so: bool, seen: str) -> None:
    if not is_so:
        raise Failed(seen)
