"""The gRPC client against a loopback server that sends the answers that a test names."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import HELLO, MISSING, Loopback, Respond, answer_hello, inputs, never
from path_parts import CATALOGUE

from compllm.backend import GenerateRequest, Guide, Segment, collect
from compllm.backends import wire
from compllm.backends.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from compllm.backends.client_stats import RequestStats
from compllm.backends.select import connect, connect_as_set
from compllm.backends.tokenizer import SpecialIds, Tokenizer
from compllm.backends.triton import TritonBackend
from compllm.config import ServerConfig
from compllm.errors import BackendRejected, ConfigError
from compllm.types import SamplingParams

END, PAD = 2, 2


def _request(name: str = "a", **more: Any) -> GenerateRequest:
    return GenerateRequest(**({"id": name, "prompt": (Segment("hi"),)} | more))


async def test_chunks_are_the_text_of_each_response(
    backend: TritonBackend, tokenizer: Tokenizer
) -> None:
    assert [tokenizer.decode([each]) for each in HELLO] == ["hello", " world"]
    chunks = [chunk async for chunk in backend.generate(_request(is_streamed=True))]
    assert [(c.text, c.num_tokens, c.finish_reason) for c in chunks] == [
        ("hello", 1, None),
        (" world", 1, "stop"),
    ]


async def test_unstreamed_request_is_one_chunk(backend: TritonBackend) -> None:
    sampling = SamplingParams(max_tokens=2)
    chunks = [chunk async for chunk in backend.generate(_request(sampling=sampling))]
    assert [(c.text, c.num_tokens, c.finish_reason) for c in chunks] == [
        ("hello world", 2, "length")
    ]


async def test_chunks_carry_the_log_probs_of_their_tokens(
    loopback: Loopback, backend: TritonBackend
) -> None:
    async def handler(message: Any, respond: Respond) -> None:
        assert inputs(message)["return_log_probs"] == [[True]]
        await respond(HELLO[:1], output_log_probs=[-0.5])
        await respond(HELLO[1:], output_log_probs=[-0.5, -0.25], is_final=True)

    loopback.handler = handler
    request = _request(is_streamed=True, wants_log_probs=True)
    chunks = [chunk async for chunk in backend.generate(request)]
    assert [chunk.log_probs for chunk in chunks] == [(-0.5,), (-0.25,)]
    assert (await collect(backend, request))[1].log_probs == (-0.5, -0.25)


async def test_an_engine_without_log_probs_gives_none(backend: TritonBackend) -> None:
    _, last = await collect(backend, _request(wants_log_probs=True))
    assert last.log_probs == ()


async def test_message_carries_everything_that_was_asked_for(
    loopback: Loopback, backend: TritonBackend, tokenizer: Tokenizer
) -> None:
    request = _request(
        sampling=SamplingParams(9, 0.5, 3, 0.75, 1.5, -1, min_tokens=4),
        adapter_id=2**52,
        guide=Guide("regex", "ä+"),
        is_streamed=True,
    )
    await collect(backend, request)
    message = loopback.messages[0]
    ids = tokenizer.encode(request.prompt)
    assert message.model_name == "tensorrt_llm"
    assert inputs(message) == {
        "input_ids": [ids],
        "input_lengths": [[len(ids)]],
        "request_output_len": [[9]],
        "end_id": [[END]],
        "pad_id": [[PAD]],
        "exclude_input_in_output": [[True]],
        "return_perf_metrics": [[True]],
        "return_num_input_tokens": [[True]],
        "return_num_output_tokens": [[True]],
        "streaming": [[True]],
        "runtime_top_k": [[3]],
        "runtime_top_p": [[0.75]],
        "temperature": [[0.5]],
        "seed": [[2**64 - 1]],
        "repetition_penalty": [[1.5]],
        "min_tokens": [[4]],
        "lora_task_id": [[2**52]],
        "guided_decoding_guide_type": "regex",
        "guided_decoding_guide": "ä+",
    }


async def test_perf_metrics_are_asked_for_only_where_they_are_read(
    loopback: Loopback, backend: TritonBackend
) -> None:
    """TensorRT-LLM sends nine tensors of them with each streamed token."""
    for wants_perf in (True, False):
        await collect(backend, _request(is_streamed=True, wants_perf=wants_perf))
    with_them, without = (inputs(message) for message in loopback.messages)
    assert with_them.keys() - without.keys() == {"return_perf_metrics"}


async def test_greedy_is_top_k_1(loopback: Loopback, backend: TritonBackend) -> None:
    await collect(backend, _request())
    given = inputs(loopback.messages[0])
    assert given["runtime_top_k"] == [[1]]
    assert not {"temperature", "runtime_top_p", "seed", "repetition_penalty"} & given.keys()


def test_further_end_tokens_are_sent_as_stop_words() -> None:
    special = SpecialIds(2, 2, (5, 6))
    message = wire.inference_message(_request(), "a#1", [1], special, is_streamed=False)
    assert inputs(message)["stop_words_list"] == [[[5, 6], [1, 2]]]


async def test_usage_is_read_from_the_last_response(
    loopback: Loopback, backend: TritonBackend
) -> None:
    async def handler(message: Any, respond: Respond) -> None:
        await respond(
            HELLO,
            is_final=True,
            num_input_tokens=5,
            num_output_tokens=1,  # of this response alone, as where the engine streams
            kv_cache_reused_blocks=3,
            kv_cache_alloc_total_blocks=4,
            arrival_time_ns=10**9,
            first_scheduled_time_ns=2 * 10**9,
            first_token_time_ns=3 * 10**9,
            last_token_time_ns=5 * 10**9,
        )

    loopback.handler = handler
    usage = (await collect(backend, _request()))[1].usage
    assert usage is not None
    assert (usage.num_input_tokens, usage.num_output_tokens) == (5, len(HELLO))
    assert (usage.kv_reused_blocks, usage.kv_alloc_blocks) == (3, 4)
    assert (usage.scheduled_s, usage.first_token_s, usage.total_s) == (1, 2, 4)


async def test_responses_find_their_request_whatever_their_order(
    loopback: Loopback, backend: TritonBackend
) -> None:
    gates = {number: asyncio.Event() for number in range(3)}

    async def handler(message: Any, respond: Respond) -> None:
        number = int(message.id[0])
        await gates[number].wait()
        await respond([HELLO[0]] * (number + 1), is_final=True)
        if number:
            gates[number - 1].set()

    loopback.handler = handler
    gates[2].set()
    answers = await asyncio.gather(*(collect(backend, _request(str(n))) for n in range(3)))
    assert [text for text, _ in answers] == ["hello", "hellohello", "hellohellohello"]


async def test_same_id_again_does_not_meet_the_first_ones_responses(
    loopback: Loopback, backend: TritonBackend
) -> None:
    await collect(backend, _request("a"))
    await collect(backend, _request("a"))
    first, second = (message.id for message in loopback.messages)
    assert first != second


async def test_closing_the_iterator_stops_that_request(
    loopback: Loopback, backend: TritonBackend
) -> None:
    loopback.handler = never
    async with aclosing(backend.generate(_request(is_streamed=True))) as chunks:
        await anext(chunks)
    assert await loopback.stopped.get() == loopback.messages[0].id


async def test_cancelling_the_task_stops_that_request(
    loopback: Loopback, backend: TritonBackend
) -> None:
    started = asyncio.Event()

    async def handler(message: Any, respond: Respond) -> None:
        started.set()
        await never(message, respond)

    loopback.handler = handler
    task = asyncio.ensure_future(collect(backend, _request()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await loopback.stopped.get() == loopback.messages[0].id


async def test_finished_request_is_not_stopped(loopback: Loopback, backend: TritonBackend) -> None:
    await collect(backend, _request())
    loopback.handler = never
    async with aclosing(backend.generate(_request("b", is_streamed=True))) as chunks:
        await anext(chunks)
    assert (await loopback.stopped.get()).startswith("b")


async def test_stop_string_ends_the_text_and_the_request(
    loopback: Loopback, backend: TritonBackend
) -> None:
    async def handler(message: Any, respond: Respond) -> None:
        assert inputs(message)["streaming"] == [[True]]
        for token in HELLO:
            await respond([token])
        assert await loopback.stopped.get() == message.id
        await respond(is_final=True)  # of the stop, and then of the request itself
        await respond([], is_final=True, num_input_tokens=1, num_output_tokens=0)

    loopback.handler = handler
    sampling = SamplingParams(stop=("wor",))
    text, last = await collect(backend, _request(sampling=sampling))
    assert (text, last.finish_reason) == ("hello ", "stop")
    assert last.usage is not None
    assert (last.usage.num_input_tokens, last.usage.num_output_tokens) == (1, len(HELLO))


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("<|im_start|>", "hello"),
        ("lo<|im_start|>", "hel"),
        ("<|im_start|> wor", "hello"),
        ("<repo_name>", "hello world"),
        ("hello<|im_start|>x", "hello world"),
    ],
)
async def test_a_stop_string_may_spell_a_special_token(
    loopback: Loopback, backend: TritonBackend, stop: str, expected: str
) -> None:
    """Special tokens are no part of the text, so that none was ever found in it."""
    start = backend.tokenizer.encode_text("<|im_start|>")
    repository = backend.tokenizer.encode_text("<repo_name>")
    assert len(start) == len(repository) == 1

    async def handler(message: Any, respond: Respond) -> None:
        await respond([HELLO[0], *start])
        await respond(HELLO[1:])
        await respond(repository if expected == "hello world" else [], is_final=True)

    loopback.handler = handler
    sampling = SamplingParams(stop=(stop,))
    request = _request(sampling=sampling, is_streamed=True)
    chunks = [chunk async for chunk in backend.generate(request)]
    assert "".join(chunk.text for chunk in chunks) == expected
    assert chunks[-1].finish_reason == "stop"


async def test_first_use_of_an_adapter_brings_its_weights_and_later_ones_its_id(
    loopback: Loopback, tokenizer: Tokenizer
) -> None:
    tensors = np.ones((1, 2), np.float16), np.array([[1, 0, 1, 0]], np.int32)
    backend = TritonBackend(loopback.url, tokenizer, lambda task_id: tensors)
    for _ in range(2):
        await collect(backend, _request(adapter_id=7))
    await backend.aclose()
    first, second = (inputs(message) for message in loopback.messages)
    assert first["lora_weights"] == [[[1.0, 1.0]]]
    assert first["lora_config"] == [[[1, 0, 1, 0]]]
    assert second["lora_task_id"] == [[7]]
    assert not {"lora_weights", "lora_config"} & second.keys()


async def test_adapter_that_the_engine_should_have_is_sent_where_it_is_missing(
    loopback: Loopback, tokenizer: Tokenizer
) -> None:
    async def handler(message: Any, respond: Respond) -> None:
        if "lora_weights" in inputs(message):
            await answer_hello(message, respond)
        else:
            await respond(error=MISSING, is_final=True)

    loopback.handler = handler
    tensors = np.ones((1, 2), np.float16), np.array([[1, 0, 1, 0]], np.int32)
    seen: list[RequestStats] = []
    backend = TritonBackend(
        loopback.url, tokenizer, lambda _: tensors, is_prefetched=True, on_request=seen.append
    )
    text, _ = await collect(backend, _request(adapter_id=7))
    await backend.aclose()
    assert text == "hello world"
    assert inputs(loopback.messages[1])["lora_config"] == [[[1, 0, 1, 0]]]
    assert (seen[0].num_attempts, seen[0].lora.num_misses, seen[0].lora.num_weight_sends) == (
        2,
        1,
        1,
    )


@pytest.mark.parametrize("has_weights", [False, True])
async def test_adapter_that_stays_missing_is_refused(
    loopback: Loopback, tokenizer: Tokenizer, has_weights: bool
) -> None:
    async def handler(message: Any, respond: Respond) -> None:
        await respond(error=MISSING, is_final=True)

    loopback.handler = handler
    tensors = np.ones((1, 2), np.float16), np.ones((1, 4), np.int32)
    backend = TritonBackend(loopback.url, tokenizer, lambda _: tensors if has_weights else None)
    with pytest.raises(BackendRejected, match="LoRA task 7 not found"):
        await collect(backend, _request(adapter_id=7))
    await backend.aclose()
    assert len(loopback.messages) == 1


async def test_warm_up_brings_every_adapter_and_names_those_that_do_not_fit(
    loopback: Loopback, tokenizer: Tokenizer
) -> None:
    async def handler(message: Any, respond: Respond) -> None:
        given = inputs(message)
        assert given["request_output_len"] == [[1]]
        assert "lora_weights" in given
        if given["lora_task_id"] == [[8]]:
            await respond(error="Invalid low_rank (99)", is_final=True)
        else:
            await answer_hello(message, respond)

    loopback.handler = handler
    tensors = np.ones((1, 2), np.float16), np.ones((1, 4), np.int32)
    backend = TritonBackend(loopback.url, tokenizer, lambda _: tensors)
    errors = await backend.warm_up([7, 8, 7])
    await backend.aclose()
    assert list(errors) == [7, 8]
    assert errors[7] is None
    assert "low_rank" in (errors[8] or "")


async def test_connect_reads_the_tokenizer_that_the_model_names(
    loopback: Loopback, base_dir: Path, tmp_path: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base_dir / name, tmp_path / name)
    loopback.tokenizer_dir = str(tmp_path)
    backend = await TritonBackend.connect(loopback.url)
    assert (await collect(backend, _request()))[0] == "hello world"
    await backend.aclose()
    loopback.tokenizer_dir = ""
    with pytest.raises(ConfigError, match="names no tokenizer"):
        await TritonBackend.connect(loopback.url)


async def test_settings_name_the_weights_to_send(
    loopback: Loopback, base_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "7"
    folder.mkdir()
    np.save(folder / WEIGHTS_FILE, np.ones((1, 2), np.float16))
    np.save(folder / CONFIG_FILE, np.array([[1, 0, 1, 0]], np.int32))
    server = ServerConfig(tokenizer=str(base_dir), adapters_dir=str(tmp_path))
    backend = await connect_as_set(loopback.url, server, CATALOGUE)
    await collect(backend, _request(adapter_id=7))
    await backend.aclose()
    assert inputs(loopback.messages[0])["lora_weights"] == [[[1.0, 1.0]]]


async def test_settings_that_name_a_folder_without_weights_are_refused(
    loopback: Loopback, base_dir: Path, tmp_path: Path
) -> None:
    """Where the engine itself had adapters, the setting was ignored."""
    for folder, said in ((tmp_path, "holds no adapters"), (tmp_path / "none", "is not there")):
        server = ServerConfig(tokenizer=str(base_dir), adapters_dir=str(folder))
        with pytest.raises(ConfigError, match=rf"server\.adapters_dir = '{folder}' {said}"):
            await connect_as_set(loopback.url, server, CATALOGUE)


async def test_each_models_configuration_is_asked_once_at_connect(
    loopback: Loopback, base_dir: Path
) -> None:
    loopback.batch_sizes = {"tensorrt_llm": 16, "biology": 8}
    others = ("tensorrt_llm", "biology", "not_there", "biology")
    backend = await connect(loopback.url, base_dir, other_models=others)
    assert isinstance(backend, TritonBackend)
    for _ in range(2):
        sizes = [
            backend.max_batch_size(model) for model in ("tensorrt_llm", "biology", "not_there")
        ]
        assert sizes == [16, 8, None]
    assert loopback.configs_asked == ["tensorrt_llm", "biology", "not_there"]
    await backend.aclose()
