"""What is known of a prompt, when it is sent ahead, and that it is in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from path_parts import BASE, CHEMISTRY

from compllm.backend import GenerateRequest, Segment
from compllm.config import PrewarmConfig
from compllm.errors import BackendError
from compllm.prompts import aggregator_prompt, node_prompt, prompt_text
from compllm.scheduling.admission import Admission
from compllm.scheduling.prewarm import Prewarmer, Verdict, Warming, known_prefix
from compllm.testing import Reply, ScriptedBackend
from compllm.types import Usage

MODEL = "tensorrt_llm"
PAIRS = (("one?", "26"), ("two?", "4"), ("three?", None))


def make(pairs: Sequence[tuple[str, str | None]]) -> tuple[Segment, ...]:
    return node_prompt(CHEMISTRY, "sum?", pairs)


@pytest.mark.parametrize(
    ("unknown", "end"),
    [
        ((True, True, True), "user\nsum?\n\nKnown facts:\n- one? "),
        ((False, True, True), "- one? 26\n- two? "),
        ((True, False, False), "- one? "),  # what follows the gap cannot be used
        ((False, False, True), "- two? 4\n- three? "),
        ((False, False, False), "- three? (not known)<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_a_prefix_ends_before_the_first_response_that_is_not_known(
    unknown: tuple[bool, ...], end: str
) -> None:
    text = prompt_text(known_prefix(make, PAIRS, unknown))
    assert text.endswith(end)
    assert prompt_text(make(PAIRS)).startswith(text.removesuffix("- three? "))


def test_the_aggregators_prompt_has_one_too() -> None:
    prefix = known_prefix(
        lambda pairs: aggregator_prompt("Why?", pairs), PAIRS, (False, True, True)
    )
    assert prompt_text(prefix).endswith("Why?\n\nKnown facts:\n- one? 26\n- two? ")
    assert prefix[0].is_template


@given(st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=4), st.data())
def test_whatever_is_answered_the_prompt_begins_with_the_prefix(
    responses: list[str], data: st.DataObject
) -> None:
    unknown = [data.draw(st.booleans()) for _ in responses]
    pairs = [(f"q{place}?", text) for place, text in enumerate(responses)]
    prefix = known_prefix(make, pairs, unknown)
    whole = make(pairs)
    # Segment by segment: the same characters as template and as data are other tokens.
    for place, segment in enumerate(prefix):
        assert whole[place].is_template == segment.is_template
        assert whole[place].text.startswith(segment.text)
        assert place == len(prefix) - 1 or whole[place] == segment


class Setting:
    """A prewarmer over a scripted backend. Measured: 1 ms a token, 4 characters each, decodes of
    `decode_s`."""

    def __init__(
        self, mode: str = "auto", *, limit: int = 8, decode_s: float | None = 1.0, **more: Any
    ) -> None:
        self.gate = asyncio.Event()
        self.backend = ScriptedBackend(Reply("x", gate=self.gate))
        self.admission = Admission({MODEL: limit})
        self.prewarmer = Prewarmer(
            self.backend,
            self.admission,
            PrewarmConfig(mode, **more),  # type: ignore[arg-type]
        )
        if decode_s is not None:
            usage = Usage(100, 9, first_token_s=0.1, total_s=0.1 + decode_s)
            self.prewarmer.observe(self.request(100), usage)

    @staticmethod
    def request(num_tokens: int) -> GenerateRequest:
        return GenerateRequest("q-1-0", (Segment("abcd" * num_tokens),))

    async def judge(self, num_tokens: int, num_warm: int = 0, in_flight: int = 1) -> Verdict:
        slots = [self.admission.slot(MODEL, 0, 1, 1.0) for _ in range(in_flight)]
        for slot in slots:
            await slot.__aenter__()
        verdict = self.prewarmer.judge(self.request(num_tokens), num_warm)
        for slot in slots:
            await slot.__aexit__(None, None, None)
        return verdict


async def test_auto_sends_nothing_before_it_has_measured() -> None:
    assert await Setting(decode_s=None).judge(1000) == "unmeasured"


@pytest.mark.parametrize(
    ("num_tokens", "num_warm", "verdict"),
    [(20, 0, "short"), (255, 0, "short"), (256, 0, "send"), (600, 400, "short")],
)
async def test_auto_leaves_what_is_shorter_than_a_chunk(
    num_tokens: int, num_warm: int, verdict: str
) -> None:
    setting = Setting(decode_s=100.0)
    assert await setting.judge(num_tokens, num_warm) == verdict


@pytest.mark.parametrize(("in_flight", "verdict"), [(4, "send"), (5, "busy"), (8, "busy")])
async def test_auto_wants_half_the_engine_free(in_flight: int, verdict: str) -> None:
    assert await Setting(decode_s=100.0).judge(256, in_flight=in_flight) == verdict


async def test_auto_buys_no_more_than_its_share_of_a_decode() -> None:
    """2 % of 10 s are 0.2 s: 200 tokens."""
    setting = Setting(decode_s=10.0, min_tokens=32)
    assert await setting.judge(201) == "dear"
    assert await setting.judge(150) == "send"
    assert await setting.judge(150) == "dear"  # the credit is spent
    assert setting.prewarmer.stats().num_dear == 2


async def test_auto_counts_the_parent_that_has_no_place_yet() -> None:
    """A child is offered when its parents are sent, before they hold places: with nobody in flight
    every prefix was free, and the parents' decodes paid for it."""
    setting = Setting(decode_s=0.5)
    assert await setting.judge(300, in_flight=0) == "dear"


async def test_short_prompts_on_a_slow_engine_are_never_sent() -> None:
    """The engine on two cores: 1 ms a token, decodes of half a second, prompts of 60 tokens."""
    setting = Setting(decode_s=0.5)
    assert [await setting.judge(tokens) for tokens in (30, 60, 120, 300)] == [
        "short", "short", "short", "dear"
    ]  # fmt: skip


def test_a_prefix_that_cannot_be_worth_it_is_not_even_made() -> None:
    setting = Setting(decode_s=100.0)
    assert setting.prewarmer.is_out_of_question(MODEL, 4 * 255)
    assert not setting.prewarmer.is_out_of_question(MODEL, 4 * 256)
    assert Setting(decode_s=None).prewarmer.is_out_of_question(MODEL, 10**6)
    assert not Setting("on").prewarmer.is_out_of_question(MODEL, 1)
    assert setting.prewarmer.stats().num_short == 1


async def test_on_sends_each_new_block_while_there_is_room() -> None:
    setting = Setting("on")
    assert await setting.judge(31) == "short"
    assert await setting.judge(32) == "send"
    assert await setting.judge(63, num_warm=40) == "short"
    assert await setting.judge(64, num_warm=40) == "send"
    assert await setting.judge(64, in_flight=8) == "busy"
    assert await Setting("on", decode_s=None).judge(1) == "send"


def test_blocks_found_in_the_cache_are_no_prefill() -> None:
    setting = Setting(decode_s=None)
    usage = Usage(100, 9, kv_reused_blocks=3, first_token_s=0.004, total_s=1.0)
    setting.prewarmer.observe(setting.request(100), usage)
    assert setting.prewarmer._meters[MODEL].prefill_token_s == pytest.approx(0.001)


async def offer_in_group(setting: Setting, use: Any) -> None:
    async with asyncio.TaskGroup() as group:

        def create(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            return group.create_task(work)

        await use(Warming(setting.prewarmer, "q", create))


async def test_a_prefix_is_a_request_for_one_token_of_the_nodes_own_adapter() -> None:
    setting = Setting("on", decode_s=None)

    async def use(warming: Warming) -> None:
        warming.offer(3, make(PAIRS), MODEL, 7)
        await setting.backend.wait_for("sum?")
        setting.gate.set()

    await offer_in_group(setting, use)
    request = setting.backend.requests[0].request
    assert (request.sampling.max_tokens, request.adapter_id, request.model) == (1, 7, MODEL)
    assert request.id.startswith("q-")
    stats = setting.prewarmer.stats()
    assert (stats.num_sent, stats.num_done) == (1, 1)
    assert stats.num_tokens > 0
    assert setting.admission.is_idle


async def test_a_node_that_starts_cancels_the_prefill_that_is_not_done() -> None:
    setting = Setting("on", decode_s=None)

    async def use(warming: Warming) -> None:
        warming.offer(3, make(PAIRS), MODEL, 7)
        warming.offer(4, make(PAIRS), MODEL, 7)
        warming.offer(4, make(PAIRS), MODEL, 7)  # one at a time of each node
        await setting.backend.wait_for("sum?", count=2)
        warming.drop(3)
        warming.drop_all()

    await offer_in_group(setting, use)
    assert [each.outcome for each in setting.backend.requests] == ["cancelled", "cancelled"]
    assert setting.prewarmer.stats().num_cancelled == 2
    assert setting.admission.is_idle


async def test_a_failing_prefill_is_nobodys_failure() -> None:
    setting = Setting("on", decode_s=None)
    backend = ScriptedBackend(Reply(error=BackendError("broke")))
    setting.prewarmer = Prewarmer(backend, setting.admission, PrewarmConfig("on"))

    async def use(warming: Warming) -> None:
        warming.offer(3, node_prompt(BASE, "why?"), MODEL, None)

    await offer_in_group(setting, use)
    assert setting.prewarmer.stats().num_failed == 1
