"""A client of a real server works with that server's settings, or warns."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import bare_catalogue, own_home

from compllm import CompLLM, ConfigWarning, load_config, paths
from compllm.cli.app import run
from compllm.errors import QueryError, ServerError
from compllm.server import triton_server
from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton

QUESTION = "What is the atomic number of iron?"


@pytest.fixture(scope="module")
def home(
    engine_dir: Path, encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A user of their own, with the fetched encoder."""
    home = tmp_path_factory.mktemp("home")
    with own_home(home, encoder_dir):
        yield home
        with contextlib.suppress(ServerError):
            triton_server.down()


@pytest.fixture(scope="module")
def mine(engine_dir: Path, home: Path) -> ServerInfo:
    """The user's server, with an expert of another name: `up --config mine.toml`. The file names
    the catalogue relative to the directory of the start."""
    catalogue = bare_catalogue(home)
    text = catalogue.read_text().replace('name = "chemistry"', 'name = "elements"')
    lines = [line for line in text.splitlines() if not line.startswith("head = ")]
    catalogue.write_text("\n".join(lines) + "\n")
    (home / "mine.toml").write_text(
        'catalogue = "experts.toml"\n[limits]\nmax_answer_tokens = 23\nmax_node_tokens = 8\n'
        '[gate]\nmode = "off"\n[compose]\npolicy = "never"\n'
    )
    with contextlib.chdir(home):
        return triton_server.up(engine_dir, has_face=True, http_port=0, config="mine.toml")


def asked_over_http(server: ServerInfo) -> dict[str, Any]:
    body = json.dumps({"text_input": QUESTION}).encode()
    url = f"{server.http_url}/v2/models/comp_llm/generate"
    with urllib.request.urlopen(urllib.request.Request(url, body)) as answer:
        value: dict[str, Any] = json.loads(answer.read())
    return value


def test_ask_answers_as_curl_does(mine: ServerInfo, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", "--json", QUESTION]) == 0
    printed = capsys.readouterr()
    assert "warning" not in printed.err
    value, served = json.loads(printed.out), asked_over_http(mine)
    assert value["answer"] == served["text_output"]
    plan = json.loads(served["plan_json"])
    assert value["plan"]["lines"] == plan["lines"]
    experts = [node["expert"] for node in value["nodes"]]
    assert set(experts) <= {"elements", "biology", "mathematics", "base"}
    assert run(["experts", "--json"]) == 0
    names = [each["name"] for each in json.loads(capsys.readouterr().out)["experts"]]
    assert names == ["elements", "biology", "mathematics", "base"]


async def test_a_question_of_too_many_tokens_is_refused_in_the_same_words_everywhere(
    mine: ServerInfo, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was within the limit of characters, and failed with the token numbers of the plan step."""
    question = "\u94c1" * 170  # of three tokens each; the tiny engine holds 512
    said = r"the question has 510 tokens; the limit is \d+: shorten it, or ask it in parts"
    for arguments in (["ask", question], ["ask", "--no-plan", question], ["plan", question]):
        assert await asyncio.to_thread(run, arguments) == 2
        assert re.fullmatch(f"error: {said}\n", capsys.readouterr().err)
    async with await CompLLM.connect() as llm:
        with pytest.raises(QueryError, match=said):
            await llm.ask(question)
    body = json.dumps({"text_input": question}).encode()
    request = urllib.request.Request(f"{mine.http_url}/v2/models/comp_llm/generate", body)
    with pytest.raises(urllib.error.HTTPError) as caught:
        await asyncio.to_thread(urllib.request.urlopen, request)
    with caught.value as refused:
        assert refused.code == 400
        assert re.search(said, refused.read().decode())


async def test_the_python_client_takes_what_the_server_is_set_to(mine: ServerInfo) -> None:
    with warnings.catch_warnings(action="error", category=ConfigWarning):
        async with await CompLLM.connect() as llm:
            assert llm.config.limits.max_answer_tokens == 23
            assert llm.catalogue.experts[0].name == "elements"


async def test_a_client_with_another_catalogue_is_warned_by_name(mine: ServerInfo) -> None:
    config = load_config(overrides={"server.url": mine.grpc_url})  # the shipped catalogue
    says = (
        rf"the server at {mine.grpc_url} serves the experts biology, elements, mathematics; "
        r"your catalogue \(.*experts\.toml\) has biology, chemistry, mathematics"
    )
    with pytest.warns(ConfigWarning, match=says):
        llm = await CompLLM.connect(config)
    async with llm:
        assert llm.catalogue.experts[0].name == "chemistry"


def test_an_own_setting_comes_before_the_servers_and_is_warned_of(
    mine: ServerInfo, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = load_config().catalogue or str(paths.resource_dir("engines") / "experts.toml")
    monkeypatch.setenv("COMPLLM_CATALOGUE", shipped)
    assert run(["plan", QUESTION]) == 0
    assert "warning: the server at" in capsys.readouterr().err


async def test_a_server_that_says_nothing_is_accepted(server: ServerInfo, home: Path) -> None:
    """Without the model comp_llm: the engine alone."""
    config = load_config(overrides={"server.url": server.grpc_url})
    with warnings.catch_warnings(action="error", category=ConfigWarning):
        async with await CompLLM.connect(config) as llm:
            assert llm.catalogue.experts
