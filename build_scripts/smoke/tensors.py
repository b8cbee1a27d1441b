"""Configuration, shapes, streaming, the engine's numbers, sampling, guided decoding."""

from __future__ import annotations

import re

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from compllm.build_scripts.repository.contract import differences
from compllm.build_scripts.smoke.checks import (
    Bench,
    Check,
    Failed,
    Skipped,
    expect,
    flag,
    floats,
    ids64,
    ints,
    number,
    refuse_errors,
    request,
    text,
    tokens,
    whole,
)
from compllm.build_scripts.smoke.client import message
from compllm.plan import PlanLimits, parse_plan, plan_guide

_WANTED = {
    "return_perf_metrics": flag(True),
    "return_num_input_tokens": flag(True),
    "return_num_output_tokens": flag(True),
}
_FAMILIES = {
    "nv_trt_llm_request_metrics": ("active", "max", "waiting"),
    "nv_trt_llm_kv_cache_block_metrics": ("max", "free", "used", "tokens_per", "reused"),
}


def _server(bench: Bench) -> str:
    stub = bench.client.stub
    expect(stub.ServerReady(service_pb2.ServerReadyRequest()).ready, "the server is not ready")
    told = stub.ServerMetadata(service_pb2.ServerMetadataRequest())
    return f"{told.name} {told.version}, model {bench.model} on backend {bench.config.backend}"


def _configuration(bench: Bench) -> str:
    config = bench.client.stub.ModelConfig(service_pb2.ModelConfigRequest(name=bench.model)).config
    found = differences(config, is_embedded=bench.is_embedded)
    expect(not found, "; ".join(found))
    return f"{len(config.input)} inputs, {len(config.output)} outputs, decoupled"


def _shapes(bench: Bench) -> str:
    responses = bench.ask(request(bench.prompt(), 8, **_WANTED))
    refuse_errors(responses)
    (first, *_) = (each for each in responses if each.tensors)
    shapes = {name: array.shape for name, array in first.tensors.items()}
    expect(shapes["output_ids"] == (1, 1, 8), f"output_ids is {shapes['output_ids']}")
    expect(shapes["sequence_length"] == (1, 1), f"sequence_length is {shapes['sequence_length']}")
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))


def _unary(bench: Bench) -> str:
    try:
        bench.client.stub.ModelInfer(message(bench.model, "unary", request(bench.prompt(), 2)))
    except grpc.RpcError as error:
        told = str(error.details())
        expect("decoupled" in told, f"refused, but with other words: {told}")
        return told
    raise Failed("it was answered")


def _prompt_in_output(bench: Bench) -> str:
    prompt = bench.prompt()
    without = whole(bench.ask(request(prompt, 4)))
    with_it = whole(bench.ask({**request(prompt, 4), "exclude_input_in_output": flag(False)}))
    expect(len(without) == 4, f"{len(without)} tokens without the prompt, 4 were asked for")
    expect(with_it[: len(prompt)] == prompt, f"with the prompt it begins {with_it[:4]}")
    return f"{len(without)} tokens without, {len(with_it)} with the prompt of {len(prompt)}"


def _final_flag(bench: Bench) -> str:
    responses = bench.ask(request(bench.prompt(), 4, streaming=flag(True)))
    refuse_errors(responses)
    expect(responses[-1].is_final, "the last response is not marked")
    expect(not any(each.is_final for each in responses[:-1]), "one before the last is marked")
    return "on the last data response" if responses[-1].tensors else "on an empty response"


def _deltas(bench: Bench) -> str:
    prompt = bench.prompt()
    alone = whole(bench.ask(request(prompt, 24)))
    responses = bench.ask(request(prompt, 24, streaming=flag(True)))
    streamed = whole(responses)
    sizes = [len(tokens(each)) for each in responses if tokens(each)]
    expect(len(sizes) > 1, f"{len(sizes)} response for 24 tokens: nothing was streamed")
    expect(len(streamed) == 24, f"{len(streamed)} streamed tokens, 24 were asked for: {sizes}")
    expect(streamed == alone, f"streamed {streamed[:8]}..., at once {alone[:8]}...")
    return f"{len(sizes)} responses, up to {max(sizes)} new tokens in one"


def _numbers(bench: Bench) -> str:
    prompt = bench.prompt(20)
    responses = bench.ask(request(prompt, 8, **_WANTED))
    refuse_errors(responses)
    names = ("arrival", "first_scheduled", "first_token", "last_token")
    times = [number(responses, f"{name}_time_ns") for name in names]
    expect(
        times == sorted(times), f"times are out of order: {dict(zip(names, times, strict=True))}"
    )
    counts = (number(responses, "num_input_tokens"), number(responses, "num_output_tokens"))
    expect(
        counts == (20, 8), f"{counts[0]} input and {counts[1]} output tokens, sent were 20 and 8"
    )
    span_ms = (times[3] - times[0]) / 1e6
    expect(0 < span_ms < 600_000, f"arrival to last token is {span_ms:g} ms: not nanoseconds?")
    return f"times in order, {span_ms:.1f} ms in all; 20 tokens in, 8 out"


def _counts(bench: Bench) -> str:
    wanted = {"streaming": flag(True), "return_num_output_tokens": flag(True)}
    responses = bench.ask(request(bench.prompt(), 8, **wanted))
    refuse_errors(responses)
    named = [each for each in responses if "num_output_tokens" in each.tensors]
    counts = [int(each.tensors["num_output_tokens"].reshape(-1)[0]) for each in named]
    held = [len(tokens(each)) for each in named]
    expect(counts == held, f"counts {counts} of responses with {held} tokens: not by response?")
    return f"{len(named)} of {len(responses)} responses have a count, each its own tokens"


def _metrics(bench: Bench) -> str:
    for family, kinds in _FAMILIES.items():
        for kind in kinds:
            bench.gauge(family, f'="{kind}"')
    family = "nv_trt_llm_kv_cache_block_metrics"
    blocks, size = (bench.gauge(family, f'="{kind}"') for kind in ("max", "tokens_per"))
    configured = bench.parameter("max_tokens_in_paged_kv_cache")
    if configured:
        expect(blocks * size <= int(configured) + size, f"{blocks * size:g} tokens > {configured}")
        share = blocks * size / int(configured)
        expect(share > 0.9, f"only {share:.0%} of max_tokens_in_paged_kv_cache fit")
    return f"KV cache of {blocks:g} blocks of {size:g} tokens"


def _reuse(bench: Bench) -> str:
    if bench.parameter("enable_kv_cache_reuse").lower() == "false":
        raise Skipped("it is off in this model's configuration")
    prompt = bench.prompt(200)
    first, second = (bench.ask(request(prompt, 2, **_WANTED)) for _ in range(2))
    expect(whole(first) == whole(second), "the same prompt was answered differently")
    before, after = (number(each, "kv_cache_reused_blocks") for each in (first, second))
    expect(before == 0, f"a prompt of random tokens met {before} cached blocks")
    expect(after > 0, "the same prompt again met no cached block")
    return f"{after} of {number(second, 'kv_cache_alloc_total_blocks')} blocks reused"


def _stop_words(bench: Bench) -> str:
    prompt = bench.prompt()
    plain = whole(bench.ask(request(prompt, 12)))
    place, word = _middle(plain)
    words = np.array([[[word], [1]]], np.int32)
    stopped = whole(bench.ask(request(prompt, 12, stop_words_list=words)))
    expect(plain[: len(stopped)] == stopped, f"{stopped} is no beginning of {plain}")
    expect(len(stopped) in (place, place + 1), f"{len(stopped)} tokens, the word is at {place}")
    kept = "kept" if len(stopped) == place + 1 else "removed"
    return f"ended after {len(stopped)} of 12 tokens; the stop word itself is {kept}"


def _end_id(bench: Bench) -> str:
    prompt = bench.prompt()
    plain = whole(bench.ask(request(prompt, 12)))
    place, end = _middle(plain)
    ended = whole(bench.ask(request(prompt, 12, end_id=ints(end), pad_id=ints(end))))
    expect(len(ended) in (place, place + 1), f"{len(ended)} tokens, the end is at {place}")
    kept = "kept" if len(ended) == place + 1 else "removed"
    return f"ended after {len(ended)} of 12 tokens; the end token itself is {kept}"


def _middle(plain: list[int]) -> tuple[int, int]:
    """The latest token of the first half that was not said before, and its place."""
    place = max(plain.index(token) for token in plain[: len(plain) // 2])
    return place, plain[place]


def _seed(bench: Bench) -> str:
    prompt = bench.prompt()

    def sampled(seed: int) -> list[int]:
        more = {"temperature": floats(1.0), "runtime_top_p": floats(0.95), "seed": ids64(seed)}
        return whole(bench.ask({**request(prompt, 16, **more), "runtime_top_k": ints(0)}))

    one, again, other = sampled(7), sampled(7), sampled(8)
    expect(one == again, f"seed 7 gave {one[:6]}... and {again[:6]}...")
    expect(one != other, "seeds 7 and 8 gave the same 16 tokens: is top_k 0 greedy here?")
    return "the same tokens for a seed, others for another; top_k 0 keeps every token"


def _guided(bench: Bench, guide: str, max_tokens: int) -> str:
    tokenizer = bench.tokenizer
    if tokenizer is None:
        raise Skipped("no tokenizer: give --tokenizer")
    if not bench.is_embedded and not bench.parameter("guided_decoding_backend"):
        raise Skipped("the repository was made with --no-guided")
    responses = bench.ask(
        request(
            tokenizer.encode_text("1 |"),
            max_tokens,
            end_id=ints(tokenizer.special.end_id),
            pad_id=ints(tokenizer.special.pad_id),
            guided_decoding_guide_type=text("regex"),
            guided_decoding_guide=text(guide),
        )
    )
    ids = [each for each in whole(responses) if each != tokenizer.special.end_id]
    return tokenizer.decode(ids)


def _regex(bench: Bench) -> str:
    said = _guided(bench, "[0-9]{4}-[a-f]{3}", 24)
    expect(re.fullmatch("[0-9]{4}-[a-f]{3}", said) is not None, f"it said {said!r}")
    return f"[0-9]{{4}}-[a-f]{{3}} gave {said!r}"


def _plan(bench: Bench) -> str:
    guide = plan_guide(3)
    said = _guided(bench, guide.text, 200)
    lines = said.splitlines()
    if len(said) < 8:
        raise Failed(f"it said {said!r}")
    # What a cut-off plan's last line holds is not decided: those before it must parse.
    complete = "\n".join(lines[:-1] if len(lines) > 1 else lines) + "\n"
    plan = parse_plan(complete, PlanLimits())
    return f"{len(plan.sub_queries)} complete lines, such as {lines[0][:50]!r}"


CHECKS = (
    Check("server", "it is ready and names its version", _server),
    Check("configuration", "the served model is upstream's, tensor by tensor", _configuration),
    Check("shapes", "output_ids is [1, beams, tokens], sequence_length [1, beams]", _shapes),
    Check("unary call", "a decoupled model refuses ModelInfer", _unary),
    Check("prompt in output", "exclude_input_in_output is honoured by request", _prompt_in_output),
    Check("final flag", "exactly the last response is marked final", _final_flag),
    Check("streaming", "each response holds the new tokens alone", _deltas),
    Check("per-request numbers", "times rise in ns of one clock; token counts are right", _numbers),
    Check("streamed counts", "num_output_tokens is that of its response alone", _counts),
    Check("metrics", "nv_trt_llm_* are there; the KV cache has the size asked for", _metrics),
    Check("KV reuse", "the same prompt again reuses blocks, and says so", _reuse),
    Check("stop words", "stop_words_list [1, 2, n] ends the answer", _stop_words),
    Check("end token", "end_id ends the answer", _end_id),
    Check("seed", "sampling repeats with its seed; top_k 0 keeps every token", _seed),
    Check("guided regex", "guide type regex keeps the output inside it", _regex),
    Check("guided plan", "the planner's own guide gives a plan that parses", _plan),
)
