"""Scenario files: what the one reader takes and refuses, for both commands."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from compllm.errors import ConfigError
from compllm.lab.replay.scenario import ReplayScenario
from compllm.lab.scenario import Scenario, example_text, read_scenario
from compllm.lab.simulate.scenario import SimulateScenario
from compllm.plan import PlanLimits

NEEDED = 'graphs = "g.jsonl"\nrate_qps = 2\nengine_profile = "gpu-like"\n'


def scenario(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    return path


def test_keys_have_their_types_and_defaults(tmp_path: Path) -> None:
    path = scenario(tmp_path, NEEDED + 'policies = ["fifo"]\nnum_queries = 7\nseed = 5\n')
    read = read_scenario(path, SimulateScenario)
    assert (type(read.rate_qps), read.rate_qps) == (float, 2.0)
    assert (read.policies, read.num_queries, read.max_in_flight) == (("fifo",), 7, None)
    assert (read.lengths.mean, read.lengths.sigma, read.lengths.seed) == (32, 0.0, 5)
    assert read.shape.answer_tokens == 64


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = scenario(tmp_path, NEEDED)
    read = read_scenario(path, SimulateScenario)
    assert (read.graphs, read.profile_name) == (tmp_path / "g.jsonl", "gpu-like")
    path = scenario(tmp_path, NEEDED.replace("gpu-like", "p.json").replace("g.jsonl", "/g.jsonl"))
    read = read_scenario(path, SimulateScenario)
    assert (read.graphs, read.profile_name) == (Path("/g.jsonl"), str(tmp_path / "p.json"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("speed = 1", "unknown key 'speed'; the keys are graphs, limit, "),
        ("[nodes]\ntokens = 1", "unknown key 'nodes'"),
        ("tokens_per_node = 1.5", r"tokens_per_node = 1.5 in .*: expected an integer from 1 to"),
        ("tokens_per_node = true", "tokens_per_node = True in .*: expected an integer"),
        ("tokens_per_node = [8]", r"tokens_per_node = \[8\] in .*: expected an integer"),
        ("tokens_sigma = nan", "tokens_sigma = nan in .*: expected a number from 0 to 3"),
        ("num_queries = 0", "num_queries = 0 in .*: expected an integer from 1"),
        ("compose = 'both'", "compose = 'both' in .*: expected one of always, "),
        ("policies = []", r"policies = \[\] in .*: expected a list of at least one"),
        ("policies = 'fifo'", "policies = 'fifo' in .*: expected a list"),
        ("policies = ['lifo']", "policies = 'lifo' in .*: expected one of oldest_query_first"),
        ("seed = ", "is not TOML"),
    ],
)
def test_an_error_names_file_and_key(text: str, problem: str, tmp_path: Path) -> None:
    path = scenario(tmp_path, NEEDED + text)
    with pytest.raises(ConfigError, match=problem) as error:
        read_scenario(path, SimulateScenario)
    assert str(path) in str(error.value)


def test_missing_keys_are_named_together(tmp_path: Path) -> None:
    path = scenario(tmp_path, "rate_qps = 1")
    with pytest.raises(ConfigError, match="no graphs, no engine_profile; the keys are graphs, "):
        read_scenario(path, SimulateScenario)


def test_no_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml"):
        read_scenario(tmp_path / "none.toml", ReplayScenario)


def test_overrides_stand_in_place_of_keys_and_none_does_not(tmp_path: Path) -> None:
    path = scenario(tmp_path, 'graphs = "g"\nseed = 3\nsalt = "A"\n')
    read = read_scenario(path, ReplayScenario, {"seed": 0, "salt": None})
    assert (read.settings.seed, read.settings.salt) == (0, "A")


@pytest.mark.parametrize("kind", [SimulateScenario, ReplayScenario])
def test_the_example_names_every_key_and_each_value_is_taken(
    kind: type[Scenario], tmp_path: Path
) -> None:
    text = example_text(kind)
    path = scenario(tmp_path, text)
    assert read_scenario(path, kind).graphs == tmp_path / "graphs.jsonl"
    # Keys that exclude each other cannot all be set: one at a time.
    for line in text.splitlines():
        name, _, value = line.removeprefix("# ").partition(" = ")
        if line.startswith("# ") and value:
            read: Any = getattr(
                read_scenario(scenario(tmp_path, f"{text}{name} = {value}"), kind), name
            )
            assert read == tomllib.loads(f"x = {value}")["x"]


def test_graphs_are_read_up_to_the_limit(tmp_path: Path) -> None:
    line = '{{"id": {}, "question": "q?", "steps": ["a?"], "parents": [[]]}}\n'
    (tmp_path / "g").write_text("".join(line.format(number) for number in range(3)))
    read = read_scenario(scenario(tmp_path, 'graphs = "g"\nlimit = 2\n'), ReplayScenario)
    assert [graph.id for graph in read.read_graphs(PlanLimits())] == ["0", "1"]
