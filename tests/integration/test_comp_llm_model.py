"""The `comp_llm` model on a real tritonserver, asked as any Triton client would."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import queue
import random
import re
import shutil
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from benchmarks.path import bench_face
from comp_llm_client import (
    CORE,
    MAX_TOKENS,
    MODEL,
    QUESTION,
    WAIT_S,
    generate,
    generate_stream,
    inputs,
    num_active,
    stream,
    texts,
)
from tritonclient.utils import InferenceServerException

from compllm.server import health, triton_server
from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def face(engine_dir: Path, home: Path) -> Iterator[ServerInfo]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPLLM_LIMITS_MAX_RUNNING", "64")
        with triton_server.running(
            engine_dir, has_face=True, has_http=True, is_shared=False
        ) as info:
            yield info


@pytest.fixture(autouse=True)
async def _leaves_the_server_well(face: ServerInfo) -> AsyncIterator[None]:
    """No request stays in the engine, and none of its processes was replaced."""
    before = _stubs(face)
    yield
    await _until_idle(face)
    assert _stubs(face) == before


def _stubs(server: ServerInfo) -> list[int]:
    return [each.pid for each in psutil.Process(server.server_pid).children(recursive=True)]


async def _until_idle(server: ServerInfo) -> None:
    async with asyncio.timeout(WAIT_S):
        while await asyncio.to_thread(num_active, server):
            pass


@pytest.fixture
async def client(face: ServerInfo) -> AsyncIterator[Any]:
    async with triton_aio.InferenceServerClient(face.grpc_url) as client:
        yield client


async def test_every_kind_of_client_gets_the_same_answer(face: ServerInfo, client: Any) -> None:
    whole = await asyncio.to_thread(generate, face, text_input=QUESTION)
    assert whole["text_output"]
    assert json.loads(whole["plan_json"])["num_nodes"] >= 1
    assert json.loads(whole["stats_json"])["usage"]["num_output_tokens"] > 0
    events = await asyncio.to_thread(generate_stream, face, text_input=QUESTION, stream=True)
    streamed = await stream(client)
    for responses in (events, streamed):
        assert len(responses) > 2
        assert "".join(each["text_output"] for each in responses) == whole["text_output"]
        assert [json.loads(each["plan_json"]) for each in responses if "plan_json" in each] == [
            json.loads(whole["plan_json"])
        ]
        assert responses[-1]["finish_reason"] == whole["finish_reason"]


def test_callback_client_of_tritonclient_streams(face: ServerInfo) -> None:
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with triton.InferenceServerClient(face.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for name in ("a", "b"):
            client.async_stream_infer(
                MODEL,
                inputs(stream=True),
                request_id=name,
                outputs=[triton.InferRequestedOutput("text_output")],
                enable_empty_final_response=True,
            )
        found = {"a": "", "b": ""}
        num_ended = 0
        while num_ended < len(found):
            result, error = answers.get(timeout=WAIT_S)
            assert error is None
            response = result.get_response()
            assert {each.name for each in response.outputs} == {"text_output"}
            found[response.id] += texts(result)["text_output"]
            num_ended += response.parameters["triton_final_response"].bool_param
    assert found["a"]
    assert found["a"] == found["b"]


def _examples(start: str) -> list[str]:
    """The indented blocks of the README's section on Triton clients that begin so."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Any Triton client\n")[1].split("\n## ")[0]
    # A block ends at the next line that is neither indented nor empty.
    blocks = re.findall(r"(?:^(?:    .*)?\n)+", section, re.MULTILINE)
    code = [textwrap.dedent(block).strip() for block in blocks]
    return [block for block in code if block.startswith(start)]


def _streaming_example() -> str:
    """The command of docs/TRITON.md that streams over HTTP."""
    page = (Path(__file__).parents[2] / "docs" / "TRITON.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^```bash\n(curl -sN .*?)^```", page, re.MULTILINE | re.DOTALL)
    return str(command)


def test_the_curl_commands_of_the_pages_run(face: ServerInfo) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    (first,) = _examples("curl")
    whole, streamed = (
        subprocess.run(
            command.replace("localhost:8000", f"127.0.0.1:{face.http_port}"),
            shell=True,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for command in (first, _streaming_example())
    )
    assert json.loads(whole)["text_output"]
    last = streamed.strip().splitlines()[-1].removeprefix("data: ")
    assert json.loads(last)["finish_reason"] in ("stop", "length")


def test_readmes_python_client_runs(face: ServerInfo) -> None:
    (program,) = _examples("import queue")
    program = program.replace("localhost:8001", face.grpc_url)
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.stdout


def test_settings_may_stand_under_parameters_as_the_generate_extension_has_them(
    face: ServerInfo,
) -> None:
    flat = generate(face, text_input=QUESTION, max_tokens=3)
    nested = generate(face, text_input=QUESTION, parameters={"max_tokens": 3, "temperature": 0})
    assert flat["text_output"] == nested["text_output"]


def test_seed_decides_a_drawn_answer(face: ServerInfo) -> None:
    drawn = [
        generate(face, text_input=QUESTION, temperature=1.5, top_p=0.9, seed=seed)["text_output"]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


async def test_64_streams_run_at_once(client: Any) -> None:
    answers = await asyncio.gather(
        *(stream(client, text=f"{QUESTION} ({number})") for number in range(64))
    )
    assert all(responses[-1]["finish_reason"] in ("stop", "length") for responses in answers)
    assert all("".join(each["text_output"] for each in responses) for responses in answers)


async def test_models_and_the_load_of_their_queue_are_told(face: ServerInfo) -> None:
    await asyncio.to_thread(generate, face, text_input=QUESTION)
    models = health.models(face)
    assert {each["name"]: each["is_ready"] for each in models} == {MODEL: True, CORE: True}

    def load() -> dict[str, float]:
        with urllib.request.urlopen(face.metrics_url) as answer:
            text = answer.read().decode()
        return {
            key: float(value)
            for key, value in re.findall(r"^(compllm_(?:queue|live)_\S+) (\S+)$", text, re.M)
        }

    async with asyncio.timeout(WAIT_S):
        while sum(value for key, value in (await asyncio.to_thread(load)).items() if "live" in key):
            pass
    told = load()
    labels = f'engine="{CORE}",model="{MODEL}",state="waiting",version="1"'
    assert told[f"compllm_queue_requests{{{labels}}}"] == 0
    assert told[f'compllm_queue_admitted_total{{engine="{CORE}",model="{MODEL}",version="1"}}'] > 1


def test_its_overhead_is_measured(
    face: ServerInfo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_face.main(["--quick", "--url", face.grpc_url, "--out", str(tmp_path)])
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "bench_face.json").read_text()) == data
    paths = [(row["users"], row["path"], row["queries"]) for row in data["tables"]["load"]]
    ways = ("in process", "comp_llm")
    assert paths == [(users, way, users) for users in (1, 2) for way in ways]
    assert set(data["summary"]["overhead_ms_by_users"]) == {"1", "2"}


async def test_cancelled_streams_leave_the_engine_idle(face: ServerInfo, client: Any) -> None:
    draw = random.Random(0)

    async def leave() -> None:
        # Anywhere from before the plan to after the end.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(draw.uniform(0.01, 3.0)):
                await stream(client)

    for _ in range(4):
        await asyncio.gather(*(leave() for _ in range(16)))
        await _until_idle(face)
    assert (await stream(client))[-1]["finish_reason"] in ("stop", "length")


async def test_http_client_who_leaves_a_stream_is_noticed(face: ServerInfo) -> None:
    for _ in range(8):
        connection = http.client.HTTPConnection("127.0.0.1", face.http_port, timeout=WAIT_S)
        body = json.dumps({"text_input": QUESTION, "stream": True})
        connection.request("POST", f"/v2/models/{MODEL}/generate_stream", body)
        connection.close()
    await _until_idle(face)
    assert num_active(face) == 0


async def test_deadline_ends_a_question(face: ServerInfo, client: Any) -> None:
    with pytest.raises(InferenceServerException, match=r"the deadline of 0\.001 s is over"):
        await stream(client, deadline_ms=1)
    await _until_idle(face)


def _status_and_body(face: ServerInfo, body: str, kind: str = "generate") -> tuple[int, str]:
    """Status and body of an HTTP request to the model."""
    connection = http.client.HTTPConnection("127.0.0.1", face.http_port, timeout=WAIT_S)
    with contextlib.closing(connection):
        connection.request("POST", f"/v2/models/{MODEL}/{kind}", body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@pytest.mark.parametrize("kind", ["generate", "generate_stream"])
def test_http_error_names_its_situation_in_the_text(face: ServerInfo, kind: str) -> None:
    """Triton 24.10 answers 400 to every error of a model, whatever its code: a client reads in the
    text whether the same request may be sent again."""
    status, body = _status_and_body(
        face, json.dumps({"text_input": QUESTION, "deadline_ms": 1}), kind
    )
    assert status == 400
    assert '"error":"DEADLINE_EXCEEDED: the deadline of 0.001 s is over' in body


@pytest.mark.parametrize("body", ['{"text_input": ', "[1]", '{"text_input": 3}'])
def test_broken_json_is_answered_by_triton_itself(face: ServerInfo, body: str) -> None:
    """With 500 and not 400: its HTTP front end reads the JSON, the model never sees it."""
    assert _status_and_body(face, body)[0] == 500


def test_log_has_a_line_for_each_query_and_no_question(face: ServerInfo) -> None:
    log = Path(face.log)
    more: tuple[dict[str, Any], ...] = ({}, {"deadline_ms": 1}, {"temperature": -1.0})
    for number, each in enumerate(more):
        _status_and_body(
            face, json.dumps({"id": f"logged-{number}", "text_input": QUESTION} | each)
        )
    deadline_s = time.monotonic() + WAIT_S
    while "query logged-2 " not in log.read_text() and time.monotonic() < deadline_s:
        time.sleep(0.02)  # the line goes through two other processes
    text = log.read_text()
    assert re.search(r'^I.*"query logged-0 (stop|length) \d+ ms nodes \d+"$', text, re.MULTILINE)
    assert re.search(r'"query logged-1 DEADLINE_EXCEEDED \d+ ms nodes -"$', text, re.MULTILINE)
    assert re.search(r'"query logged-2 INVALID_ARGUMENT \d+ ms nodes -"$', text, re.MULTILINE)
    assert "atomic number" not in text
    assert not re.search("^E", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"text": "  "}, "the question is empty"),
        ({"text": "why? " * 2000}, "9999 characters, at most 8000"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 2.0}, "top_p is 2"),
        ({"max_tokens": MAX_TOKENS + 1}, f"max_tokens is {MAX_TOKENS + 1}"),
        ({"deadline_ms": -1}, "deadline_ms is -1"),
    ],
)
async def test_bad_input_is_one_clear_error(client: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(InferenceServerException, match=said):
        await stream(client, **more)


async def test_unknown_tensor_is_refused(client: Any) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        tensor = triton.InferInput("beam_width", [1, 1], "INT32")
        tensor.set_data_from_numpy(np.ones((1, 1), np.int32))
        yield {"model_name": MODEL, "inputs": [*inputs(), tensor]}

    async for _, error in client.stream_infer(requests()):
        assert "unexpected inference input 'beam_width' for model 'comp_llm'" in str(error)
        break


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"text_input": ""}, "the question is empty"),
        ({"max_tokens": 3}, "text_input is missing"),
        ({"text_input": "x", "max_token": 3}, "unknown input 'max_token': did you mean"),
        ({"text_input": "x", "temperature": -1}, "temperature is -1"),
        ({"text_input": "x", "temperature": "hot"}, "non-number as double"),
        ({"text_input": ["a", "b"]}, "batch-size must be <= 1 for 'comp_llm'"),
    ],
)
def test_bad_json_is_one_clear_error(face: ServerInfo, body: dict[str, Any], said: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        generate(face, **body)
    with caught.value as answer:
        assert said in json.loads(answer.read())["error"]
