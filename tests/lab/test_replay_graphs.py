import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compllm.errors import ConfigError
from compllm.lab.replay.graphs import read_graphs
from compllm.plan import PlanLimits

GOOD: dict[str, Any] = {"id": "a", "question": "q?", "steps": ["x?", "y #1?"], "parents": [[], [0]]}


def write(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts))
    return path


def test_a_line_becomes_a_plan_with_ids_from_1(tmp_path: Path) -> None:
    (graph,) = read_graphs(write(tmp_path / "g", GOOD), PlanLimits())
    assert (graph.id, graph.question, graph.depth, graph.width) == ("a", "q?", 2, 1)
    assert [each.parents for each in graph.plan.sub_queries] == [(), (1,)]


def test_no_more_lines_than_the_limit_are_read(tmp_path: Path) -> None:
    file = write(tmp_path / "g", GOOD, "", GOOD | {"id": "b"}, "not JSON")
    assert [graph.id for graph in read_graphs(file, PlanLimits(), 2)] == ["a", "b"]


def test_a_step_said_twice_is_made_two(tmp_path: Path) -> None:
    file = write(tmp_path / "g", GOOD | {"steps": ["x?", "x?"]})
    (graph,) = read_graphs(file, PlanLimits())
    assert [each.text for each in graph.plan.sub_queries] == ["x?", "x? (2)"]


@pytest.mark.parametrize(
    ("steps", "texts"),
    [
        (["a (2)", "a", "a"], ["a (2)", "a", "a (3)"]),
        (["a", "a", "a (2)", "a"], ["a", "a (3)", "a (2)", "a (4)"]),
        (["a", "a", "a (2)", "a (2)"], ["a", "a (3)", "a (2)", "a (2) (2)"]),
    ],
)
def test_a_number_makes_no_step_that_is_there(
    steps: list[str], texts: list[str], tmp_path: Path
) -> None:
    file = write(tmp_path / "g", GOOD | {"steps": steps, "parents": [[]] * len(steps)})
    (graph,) = read_graphs(file, PlanLimits())
    assert [each.text for each in graph.plan.sub_queries] == texts


@given(st.lists(st.sampled_from(["a", "a (2)", "a (3)", "a (2) (2)"]), min_size=1, max_size=12))
def test_no_line_of_a_plan_is_said_twice(steps: list[str]) -> None:
    record = GOOD | {"steps": steps, "parents": [[]] * len(steps)}
    with tempfile.TemporaryDirectory() as folder:
        (graph,) = read_graphs(write(Path(folder) / "g", record), PlanLimits())
    texts = [each.text for each in graph.plan.sub_queries]
    assert len({*texts}) == len(steps)
    assert {*steps} <= {*texts}


def test_a_step_over_several_lines_becomes_one(tmp_path: Path) -> None:
    (graph,) = read_graphs(write(tmp_path / "g", GOOD | {"steps": ["x\n y?", "z?"]}), PlanLimits())
    assert graph.plan.sub_queries[0].text == "x y?"


def test_a_step_without_words_keeps_its_node(tmp_path: Path) -> None:
    (graph,) = read_graphs(write(tmp_path / "g", GOOD | {"steps": ["x?", " "]}), PlanLimits())
    assert [node.text for node in graph.plan.sub_queries] == ["x?", "step 2"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is no graph"),
        ({"id": "b", "question": "q?"}, "line 2 is no graph"),
        (GOOD | {"question": " "}, "line 2 has no question"),
        (GOOD | {"question": "\ud800"}, "line 2 has no question"),
        # It could not be written, after the whole run.
        (GOOD | {"id": "\ud800"}, r"line 2 has the id '\\ud800', which holds half a surrogate"),
        (GOOD | {"id": [1]}, r"line 2 has the id \[1\]"),
        (GOOD, "line 2 has the id 'a' of an earlier line"),
        (GOOD | {"id": "b", "parents": [[1], [0]]}, "line 2 has a bad plan: .*cycle"),
        (GOOD | {"id": "b", "parents": [[]]}, "line 2 has a bad plan: .*one length"),
        (GOOD | {"id": "b", "steps": ["x?", 3]}, "line 2 has a bad plan"),
        (GOOD | {"id": "b", "steps": []}, "line 2 has a bad plan"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, line: object, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"g\.jsonl: {problem}"):
        read_graphs(write(tmp_path / "g.jsonl", GOOD, line), PlanLimits())


def test_a_plan_beyond_the_limits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 1 are allowed"):
        read_graphs(write(tmp_path / "g", GOOD), PlanLimits(max_nodes=1))


def test_an_empty_or_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no graphs"):
        read_graphs(write(tmp_path / "g", ""), PlanLimits())
    with pytest.raises(ConfigError, match="cannot read"):
        read_graphs(tmp_path / "nowhere", PlanLimits())
