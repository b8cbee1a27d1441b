"""What is read of an engine's configuration, and when admission learns it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2

from compllm.backends.model_limits import EMBEDDED, batch_size_of
from compllm.embedded.options import ExecutorOptions
from compllm.errors import BackendError, BackendUnavailable, CompllmError
from compllm.scheduling.admission import Admission
from compllm.scheduling.limits import LimitFinder
from compllm.testing import Reply, ScriptedBackend


def config_of(max_batch_size: int = 1, **parameters: str) -> object:
    config = model_config_pb2.ModelConfig(max_batch_size=max_batch_size)
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


def test_the_embedded_engine_batches_what_its_options_say_or_their_default() -> None:
    assert ExecutorOptions().max_batch_size == EMBEDDED
    assert batch_size_of(config_of(executor_options="{}")) == EMBEDDED
    assert batch_size_of(config_of(executor_options='{"max_batch_size": 4}')) == 4


@pytest.mark.parametrize("options", ["[]", "{", '{"max_batch_size": "many"}', '{"x": 1}'])
def test_odd_options_are_no_error(options: str) -> None:
    assert batch_size_of(config_of(executor_options=options)) in (None, EMBEDDED)


def test_an_engine_of_tensorrt_llm_on_this_machine_tells_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"build_config": {"max_batch_size": 16}}))
    assert batch_size_of(config_of(8, gpt_model_path=str(tmp_path))) == 16


def test_elsewhere_the_repository_tells_unless_it_says_one() -> None:
    assert batch_size_of(config_of(8, gpt_model_path="/not/here")) == 8
    assert batch_size_of(config_of(1, gpt_model_path="/not/here")) is None
    assert batch_size_of(config_of(0)) is None


class Telling(ScriptedBackend):
    """Answers this for each model, or raises it."""

    def __init__(self, *answers: int | CompllmError | None) -> None:
        super().__init__(Reply("x"))
        self.answers = list(answers)
        self.asked: list[str] = []

    async def max_batch_size(self, model: str) -> int | None:
        self.asked.append(model)
        answer = self.answers.pop(0)
        if isinstance(answer, CompllmError):
            raise answer
        return answer


async def test_admission_learns_each_engines_limit_once() -> None:
    admission = Admission({"base": 64, "bio": 64, "odd": 64})
    backend = Telling(4, 8, None)
    finder = LimitFinder(backend, admission, ("base", "bio", "odd"))
    await finder.find()
    await finder.find()
    assert [load.limit for load in admission.loads().values()] == [4, 8, 64]
    assert backend.asked == ["base", "bio", "odd"]


async def test_an_engine_that_is_away_is_asked_again_one_that_refuses_is_not() -> None:
    admission = Admission({"base": 64})
    backend = Telling(BackendUnavailable("away"), BackendError("no such call"), 4)
    finder = LimitFinder(backend, admission, ("base",))
    for _ in range(3):
        await finder.find()
    assert len(backend.asked) == 2
    assert admission.load("base").limit == 64


async def test_limits_stay_while_something_is_in_flight() -> None:
    admission = Admission({"base": 64})
    finder = LimitFinder(Telling(4), admission, ("base",))
    async with admission.slot("base", 0, 1, 1.0):
        await finder.find()
    assert admission.load("base").limit == 64
    await finder.find()
    assert admission.load("base").limit == 4


async def test_a_backend_that_cannot_tell_leaves_them() -> None:
    admission = Admission({"base": 64})
    await LimitFinder(ScriptedBackend(), admission, ("base",)).find()
    assert admission.load("base").limit == 64
