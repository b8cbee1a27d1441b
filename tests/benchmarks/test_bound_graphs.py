"""bound_graphs: its requests are the simulator's, and a run without files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.load.replayed import spec_of
from benchmarks.path import bound_graphs
from benchmarks.path.bound_graphs import LoadCounter, cells, nodes_alone
from path_parts import CATALOGUE

from compllm.lab.engine_profile import EngineProfile
from compllm.lab.replay.graphs import ReplayGraph
from compllm.lab.replay.ideal import Load, ideal
from compllm.lab.replay.workload import Overhead, TokenLengths
from compllm.lab.simulate.load import Service, simulate
from compllm.lab.simulate.workload import Shape, Workload, make_workload, quarters
from compllm.plan import format_plan
from compllm.prompts import prompt_text
from compllm.types import ANSWER_NODE, PLAN_NODE, Plan, SubQuery

PROFILE = EngineProfile("test", ((0, 4.0), (1, 8.0), (4, 14.0), (8, 24.0)), 2.0, mixed_ms=3.0)
LENGTHS = TokenLengths(8)
NUM_ANSWER = 16
DIAMOND = ReplayGraph(
    "diamond",
    "Which has the greater atomic number, the metal of rails or the gas of signs?",
    Plan(
        (
            SubQuery(1, "Which metal and which gas are asked for?"),
            SubQuery(2, "What is the atomic number of that metal?", (1,)),
            SubQuery(3, "What is the atomic number of that gas, of which signs are made?", (1,)),
            SubQuery(4, "Which of #2 and #3 is greater?", (2, 3)),
            SubQuery(5, "Who asks?"),  # a second leaf
        )
    ),
)


def loads_of(graph: ReplayGraph = DIAMOND) -> dict[int, Load]:
    counter = LoadCounter(quarters, PROFILE.tokens_per_block, CATALOGUE)
    return counter.loads(graph, LENGTHS, NUM_ANSWER)


def simulated(overhead: Overhead) -> Workload:
    return make_workload(
        [DIAMOND],
        LENGTHS,
        Shape(overhead, answer_tokens=NUM_ANSWER),
        quarters,
        tokens_per_block=PROFILE.tokens_per_block,
        catalogue=CATALOGUE,
    )


@pytest.mark.parametrize("overhead", ["none", "plan+compose"])
def test_requests_are_those_of_the_simulator(overhead: Overhead) -> None:
    """Each starts and ends when the simulator's own do: prompts, responses, plan and gates."""
    # The last line's newline, which only the simulator counts, is no token more of a quarter's.
    loads = loads_of() if overhead == "plan+compose" else nodes_alone(loads_of())
    numbers = np.array([*[8] * 5, NUM_ANSWER], np.int32)
    works = [simulated(overhead), Workload((spec_of(loads),), (numbers,), seed=0)]
    theirs, ours = (
        simulate(work, work.load(math.inf, 1), Service(PROFILE), is_traced=True) for work in works
    )
    assert [(each.node, each.ready_ms, each.end_ms) for each in ours.requests] == [
        (each.node, each.ready_ms, each.end_ms) for each in theirs.requests
    ]
    (engine,) = theirs.engines
    assert engine.num_prefill_tokens == sum(load.num_prompt_tokens for load in loads.values())
    assert engine.num_output_tokens == sum(load.num_new_tokens for load in loads.values())
    assert ideal(loads, PROFILE).total_ms == pytest.approx(theirs.take_latency_ms()[0])


def test_a_longer_text_is_a_longer_prompt_and_a_later_line() -> None:
    nodes = DIAMOND.plan.sub_queries
    more = replace(nodes[0], text=nodes[0].text + " " * 40)
    loads = loads_of()
    longer = loads_of(replace(DIAMOND, plan=Plan((more, *nodes[1:]))))
    changed = {node for node, load in loads.items() if longer[node] != load}
    # Itself, those that quote it, and all whose lines stand behind it; the answer quotes leaves.
    assert changed == {PLAN_NODE, 1, 2, 3, 4, 5}
    assert longer[2].num_prompt_tokens == loads[2].num_prompt_tokens + 10
    assert longer[4].num_prompt_tokens == loads[4].num_prompt_tokens
    assert longer[ANSWER_NODE].parents == (4, 5)


def test_a_plan_is_as_long_as_the_text_that_a_replay_forces() -> None:
    counter = LoadCounter(prompt_text, PROFILE.tokens_per_block, CATALOGUE)  # a token a character
    text = format_plan(DIAMOND.plan.sub_queries).removesuffix("\n")
    loads = counter.loads(DIAMOND, LENGTHS, NUM_ANSWER)
    ends = [number for number, character in enumerate(text, start=1) if character == "\n"]
    assert [loads[node].num_plan_tokens for node in range(1, 6)] == [*ends, len(text)]
    assert loads[PLAN_NODE].num_new_tokens == len(text)


def test_percentiles_are_values_of_graphs() -> None:
    row = cells([1.0, 1.0, 2.0, 5.0], seed=0)
    assert (row["mean"], row["p10"], row["p50"], row["p90"]) == (2.25, 1.0, 1.0, 5.0)


def test_a_quick_run_needs_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))  # no tokenizer there: an estimate serves
    assert bound_graphs.main(["--quick", "--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "bound_graphs.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == saved
    (work,) = saved["tables"][bound_graphs.WORK]
    assert (work["graphs"], work["chains"]) == (4, 1)
    rows = saved["tables"][bound_graphs.SPEEDUPS]
    assert [row["bound"] for row in rows] == ["structural", *["stage", "whole"] * 2]
    # Of chain, diamond, fan in and mixed: 1, 4/3, 2, 5/3.
    assert rows[0]["mean"] == pytest.approx(1.5)
    gpu_like = rows[3]
    assert rows[1]["mean"] < gpu_like["mean"] <= rows[0]["mean"]
    shares = [row["mean"] for row in saved["tables"][bound_graphs.MOMENTS]]
    assert len(shares) == 2
    assert all(0 < share < 1 for share in shares)
    assert "hypothetical" in (tmp_path / "bound_graphs.md").read_text()
