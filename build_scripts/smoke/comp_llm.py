"""comp_llm: the whole path behind one Triton model."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from compllm.build_scripts.smoke.checks import (
    Bench,
    Check,
    Failed,
    Skipped,
    expect,
    flag,
    ints,
    refuse_errors,
    text,
)
from compllm.plural import counted

_MODEL = "comp_llm"
_QUESTION = "What is the atomic number of iron, and how many chromosomes does a human cell have?"


def _require(bench: Bench) -> None:
    try:
        ready = bench.client.stub.ModelReady(service_pb2.ModelReadyRequest(name=_MODEL)).ready
    except grpc.RpcError as error:
        raise Skipped(f"{_MODEL} is not served: {error.details()}") from error
    if not ready:
        raise Skipped(f"{_MODEL} is not served here")


def _streamed(bench: Bench) -> str:
    _require(bench)
    question = {"text_input": text(_QUESTION), "max_tokens": ints(32), "stream": flag(True)}
    start = time.monotonic()
    responses = bench.client.ask(question, _MODEL)
    took_s = time.monotonic() - start  # of the first plan: no guide is compiled any more
    refuse_errors(responses)
    outputs: dict[str, str] = {}
    for response in responses:
        for name, array in response.tensors.items():
            outputs[name] = outputs.get(name, "") + bytes(array.reshape(-1)[0]).decode()
    plan, stats = json.loads(outputs["plan_json"]), json.loads(outputs["stats_json"])
    expect(bool(outputs["text_output"].strip()), "the answer is empty")
    expect(outputs["finish_reason"] in ("stop", "length"), f"ended with {outputs['finish_reason']}")
    expect(isinstance(stats, dict), "stats_json is no object")
    expect(plan["num_nodes"] == len(plan["lines"]), f"plan_json has {plan}")
    told = f"plan of {counted(plan['num_nodes'], 'sub-query')}, {outputs['finish_reason']}"
    return f"{len(responses)} responses in {took_s:.1f} s, {told}"


def _http(bench: Bench) -> str:
    _require(bench)
    if not bench.http_url:
        raise Skipped("no HTTP address: give --http-url")
    body = json.dumps({"text_input": _QUESTION, "max_tokens": 32}).encode()
    asked = urllib.request.Request(f"{bench.http_url}/v2/models/{_MODEL}/generate", data=body)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=bench.client.timeout_s) as answer:
            told: dict[str, Any] = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise Failed(f"status {error.code}: {error.read().decode()[:200]}") from error
    expect(bool(str(told.get("text_output", "")).strip()), f"no text in {sorted(told)}")
    return f"answer with {', '.join(sorted(told))}"


CHECKS = (
    Check("comp_llm over gRPC", "streams text, then plan, statistics and finish_reason", _streamed),
    Check("comp_llm over HTTP", "generate answers curl", _http),
)
