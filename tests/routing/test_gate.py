"""The plan-or-answer gate: its file, its settings, its place in the path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from path_parts import make_llm, node_reply, plan_reply, settings

from compllm.catalogue import load_catalogue
from compllm.config import GateConfig
from compllm.errors import ConfigError, RouteError
from compllm.pipeline import CompLLM
from compllm.routing.embed import Array, SentenceEncoder
from compllm.routing.gate import DIRECT, Gate, default_gate, load_gate, open_gate, save_gate
from compllm.routing.heads import Layer, Softmax
from compllm.testing import HashingEncoder, ScriptedBackend
from compllm.trace import answer_to_dict
from compllm.types import Plan, SubQuery

IRON = "What is the atomic number of iron?"
BOTH = "Iron plus neon, and who painted the Mona Lisa?"


async def gate_of(*direct: str, encoder: str = HashingEncoder.id) -> Gate:
    """Sure of these questions; of others it is not."""
    vectors = await HashingEncoder().encode(direct)
    weights = np.stack([vectors.sum(axis=0), -vectors.sum(axis=0)], axis=1) * 20
    bias = np.array([-15, 15], np.float32)
    head = Softmax((DIRECT,), (Layer(weights.astype(np.float32), bias, np.array([0, -1])),))
    return Gate(head, ((0.05, 0.9), (0.2, 0.4)), encoder, {"seed": 3})


@pytest.fixture
async def gate_file(tmp_path: Path) -> Path:
    path = tmp_path / "gate.npz"
    save_gate(path, await gate_of(IRON))
    return path


async def test_a_question_that_needs_no_plan_goes_straight_to_its_expert(gate_file: Path) -> None:
    backend = ScriptedBackend(node_reply(IRON, "26"))
    async with make_llm(backend, gate__risk=0.05, gate__file=str(gate_file)) as llm:
        answer = await llm.ask(IRON)
    assert (answer.text, answer.plan) == ("26", Plan((SubQuery(1, IRON),), is_direct=True))
    assert [route.expert for route in answer.routes] == ["chemistry"]
    assert len(backend.requests) == 1
    assert answer_to_dict(answer)["plan"]["is_direct"] is True


async def test_a_question_that_needs_a_plan_gets_one(gate_file: Path) -> None:
    backend = ScriptedBackend(plan_reply(f"1 | {IRON}"), node_reply(IRON, "26"))
    async with make_llm(backend, gate__risk=0.05, gate__file=str(gate_file)) as llm:
        answer = await llm.ask(BOTH)
    assert not answer.plan.is_direct
    assert "is_direct" not in answer_to_dict(answer)["plan"]
    assert len(backend.requests) == 2


async def test_the_plan_that_is_shown_is_the_plan_that_runs(gate_file: Path) -> None:
    """`CompLLM.plan` obeys the gate as `stream` does."""
    backend = ScriptedBackend(plan_reply(f"1 | {IRON}"))
    async with make_llm(backend, gate__risk=0.05, gate__file=str(gate_file)) as llm:
        plan, routes = await llm.plan(IRON)
        assert plan == Plan((SubQuery(1, IRON),), is_direct=True)
        assert [route.expert for route in routes] == ["chemistry"]
        assert not backend.requests
        plan, _ = await llm.plan(BOTH)
    assert plan == Plan((SubQuery(1, IRON),))
    assert len(backend.requests) == 1


async def test_a_given_plan_is_not_asked_about(gate_file: Path) -> None:
    other = "What is the atomic number of neon?"
    backend = ScriptedBackend(node_reply(other, "10"))
    async with make_llm(backend, gate__mode="on", gate__file=str(gate_file)) as llm:
        answer = await llm.ask(IRON, plan=Plan((SubQuery(1, other),)))
    assert answer.text == "10"


async def test_everything_is_planned_unless_the_gate_is_set() -> None:
    assert await open_gate(GateConfig(), HashingEncoder()) is None


async def test_auto_takes_the_loosest_floor_that_keeps_the_wanted_risk(gate_file: Path) -> None:
    for risk, floor in ((0.05, 0.9), (0.19, 0.9), (0.2, 0.4), (1.0, 0.4)):
        wanted = GateConfig("auto", risk, str(gate_file))
        keeper = await open_gate(wanted, HashingEncoder())
        assert keeper is not None
        assert keeper.floor == floor
    assert await open_gate(GateConfig("auto", 0.01, str(gate_file)), HashingEncoder()) is None


async def test_on_asks_only_for_more_likely_than_not(gate_file: Path) -> None:
    keeper = await open_gate(GateConfig("on", 0.0, str(gate_file)), HashingEncoder())
    assert keeper is not None
    assert keeper.floor == 0.5


async def test_another_encoders_gate_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gate.npz"
    save_gate(path, await gate_of(IRON, encoder="other"))
    for mode in ("on", "auto"):
        wanted = replace(GateConfig(file=str(path)), mode=mode)
        with pytest.raises(RouteError, match=r"made for encoder 'other', not 'hashing-64'"):
            await open_gate(wanted, HashingEncoder())


async def test_auto_leaves_the_shipped_gate_alone_under_another_encoder() -> None:
    assert await open_gate(GateConfig("auto"), HashingEncoder()) is None
    with pytest.raises(RouteError, match="gate"):
        await open_gate(GateConfig("on"), HashingEncoder())


async def test_a_refused_gate_leaves_nothing_open(tmp_path: Path) -> None:
    backend = ScriptedBackend()
    with pytest.raises(ConfigError, match="no gate in"):
        async with make_llm(backend, gate__mode="on", gate__file=str(tmp_path / "absent.npz")):
            pass
    assert backend.is_closed


async def test_a_gate_comes_back_as_it_was_saved(gate_file: Path) -> None:
    gate, found = await gate_of(IRON), load_gate(gate_file)
    vectors = await HashingEncoder().encode([IRON, BOTH])
    np.testing.assert_array_equal(found.scores(vectors), gate.scores(vectors))
    assert (found.floors, found.encoder, found.record) == (gate.floors, gate.encoder, gate.record)
    assert [path.name for path in gate_file.parent.iterdir()] == ["gate.npz"]


def _rewritten(path: Path, **changes: object) -> None:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    kept = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    np.savez(path, **kept)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": None}, "'weights' is missing"),
        ({"bias": np.zeros(3, np.float32)}, "do not fit together"),
        ({"weights": np.full((64, 2), np.nan, np.float32)}, "not finite"),
        ({"groups": np.array([0, 1])}, "not 0 and -1"),
        ({"about": np.array('{"format": 2}')}, "its format is 2"),
        ({"about": np.array("{")}, "Expecting"),
        (
            {
                "about": np.array(
                    '{"format": 1, "encoder": "e", "floors": [[0.1, 7]], "record": {}}'
                )
            },
            "its floors hold 7",
        ),
    ],
)
def test_a_damaged_file_never_decides(
    gate_file: Path, changes: dict[str, object], said: str
) -> None:
    _rewritten(gate_file, **changes)
    with pytest.raises(ConfigError, match=r"read the gate in .*`compllm train gate`") as caught:
        load_gate(gate_file)
    assert said in str(caught.value)


def test_a_file_cut_short_never_decides(gate_file: Path) -> None:
    gate_file.write_bytes(gate_file.read_bytes()[:-200])
    with pytest.raises(ConfigError, match="cannot read the gate"):
        load_gate(gate_file)


async def test_vectors_of_another_width_are_refused() -> None:
    vectors: Array = np.ones((1, 3), np.float32)
    with pytest.raises(RouteError, match=r"expected queries \[n, 64\]"):
        (await gate_of(IRON)).scores(vectors)


async def test_the_shipped_gate_tells_plain_questions_from_composite_ones(
    encoder: SentenceEncoder,
) -> None:
    """On the real encoder, through the path: the shipped gate, `auto`, the default risk."""
    keeper = await open_gate(GateConfig("auto"), encoder)
    assert keeper is not None
    assert keeper.gate.encoder == encoder.id == load_gate(default_gate()).encoder
    question = "What is the square root of 144?"
    composite = "What is the atomic number of iron plus the number of legs of a spider?"
    assert await keeper.plan(question) == Plan((SubQuery(1, question),), is_direct=True)
    assert await keeper.plan(composite) is None

    backend = ScriptedBackend(node_reply(question, "12"))
    async with CompLLM(backend, encoder, load_catalogue(), settings(gate__mode="auto")) as llm:
        answer = await llm.ask(question)
    assert (answer.text, answer.plan.is_direct) == ("12", True)
    assert [route.expert for route in answer.routes] == ["mathematics"]
