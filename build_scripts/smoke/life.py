"""Requests that end early, must not begin, or come all at once."""

from __future__ import annotations

import time

from compllm.build_scripts.smoke.checks import (
    Bench,
    Check,
    error_of,
    expect,
    flag,
    ints,
    refuse_errors,
    request,
    tokens,
    whole,
)
from compllm.build_scripts.smoke.client import message

_LONG = 400  # tokens: more than anything ends before it is stopped
_STOP_S = 5.0  # from asking to the end of a request
_MANY = 64


def _stop(bench: Bench) -> str:
    with bench.client.stream() as stream:
        stream.send(
            message(bench.model, "long", request(bench.prompt(), _LONG, streaming=flag(True)))
        )
        seen = len(tokens(stream.next("long")))
        start = time.monotonic()
        # Required inputs must be there, unused.
        stream.send(message(bench.model, "long", {**request([1], 1), "stop": flag(True)}))
        num_ends = 0
        while num_ends < 2:  # its own end, and that of the request to stop; in either order
            response = stream.next("long")
            refuse_errors([response])
            seen += len(tokens(response))
            num_ends += response.is_final
        took_s = time.monotonic() - start
    expect(seen < _LONG, f"it went on to all {_LONG} tokens")
    expect(took_s < _STOP_S, f"it took {took_s:.1f} s")
    idle_s = bench.wait_idle(_STOP_S) if bench.metrics_url else 0.0
    return f"{seen} of {_LONG} tokens, ended {took_s * 1e3:.0f} ms after, idle {idle_s:.2f} s later"


def _stop_unknown(bench: Bench) -> str:
    with bench.client.stream() as stream:
        stream.send(message(bench.model, "nobody", {**request([1], 1), "stop": flag(True)}))
        responses = list(stream.responses("nobody"))
    refuse_errors(responses)
    expect(not any(each.tensors for each in responses), "it came with tensors")
    return "an empty final response"


def _stop_unnamed(bench: Bench) -> str:
    with bench.client.stream() as stream:
        stream.send(message(bench.model, "", {**request([1], 1), "stop": flag(True)}))
        return error_of([stream.next("")], "stop without an id")


def _closed_stream(bench: Bench) -> str:
    bench.wait_idle(_STOP_S)
    with bench.client.stream() as stream:
        for number in range(4):
            long = request(bench.prompt(), _LONG, streaming=flag(True))
            stream.send(message(bench.model, f"long{number}", long))
        bench.wait_active(_STOP_S)
    return f"4 requests gone {bench.wait_idle(_STOP_S):.2f} s after the stream was closed"


def _too_long(bench: Bench) -> str:
    told = error_of(bench.ask(request(bench.prompt(200_000), 8)), "a prompt of 200,000 tokens")
    whole(bench.ask(request(bench.prompt(), 2)))
    return told[:160]


def _no_tokens(bench: Bench) -> str:
    bad = {**request(bench.prompt(), 4), "request_output_len": ints(0)}
    return error_of(bench.ask(bad), "request_output_len 0")[:160]


def _many(bench: Bench) -> str:
    start = time.monotonic()
    answers = bench.ask_all([request(bench.prompt(), 16) for _ in range(_MANY)])
    took_s = time.monotonic() - start
    sizes = {len(whole(answer)) for answer in answers}
    expect(sizes == {16}, f"answers of {sorted(sizes)} tokens, 16 were asked for")
    return f"{_MANY} answers in {took_s:.1f} s: {_MANY * 16 / took_s:.0f} tokens/s"


CHECKS = (
    Check("stop by id", "a second request with its id and stop=true ends a request", _stop, 5),
    Check("stop of nobody", "an unknown id is no error", _stop_unknown),
    Check("stop without id", "is refused", _stop_unnamed),
    Check("closed stream", "cancels everything that was under way on it", _closed_stream, 5),
    Check("too long", "a prompt beyond max_seq_len is refused, and the server lives", _too_long),
    Check("no tokens", "request_output_len 0 is refused", _no_tokens),
    Check("many at once", f"{_MANY} requests on one stream all end", _many),
)
