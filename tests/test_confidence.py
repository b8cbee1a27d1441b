"""confidence: log-probabilities to a probability, and what is said below the threshold."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compllm.confidence import (
    Calibration,
    Judge,
    Scale,
    closure,
    expert_features,
    is_unknown,
    load_calibration,
    open_judge,
    save_calibration,
)
from compllm.config import AnswerConfig
from compllm.errors import ConfigError
from compllm.prompts import UNKNOWN
from compllm.types import NodeResult, Plan, Route, SubQuery

LINES = (SubQuery(1, "What is A?"), SubQuery(2, "What is B?"), SubQuery(3, "Is #1 even?", (1,)))
ROUTE = Route("chemistry", 0.9, is_fallback=False)
# As sure as the least likely token, for experts and for the base alike.
WORST = Calibration(
    Scale((0.0, 1.0, 0.0, 0.0, 0.0, 0.0), 3.0), Scale((0.0, 1.0, 0.0, 0.0, 0.0, 0.0), 3.0), 0.5, 0.5
)


def node(id: int, *log_probs: float, expert: str = "chemistry", response: str = "26") -> NodeResult:
    return NodeResult(id, expert, "done", response, log_probs=log_probs)


def verdict(results: list[NodeResult], calibration: Calibration | None = WORST, **settings: Any):  # type: ignore[no-untyped-def]
    judge = Judge(calibration, AnswerConfig(**settings), "base")
    lines = LINES[: len(results)]
    routed = [
        (line, replace(ROUTE, expert=each.expert))
        for line, each in zip(lines, results, strict=True)
    ]
    leaves = [line.id for line in lines if all(line.id not in each.parents for each in lines)]
    pairs = [(lines[leaf - 1].text, results[leaf - 1].response) for leaf in leaves]
    return judge.judge(Plan(lines), routed, results, leaves, pairs)


def test_a_sure_answer_is_given_with_its_confidence() -> None:
    found = verdict([node(1, -0.01)])
    assert found.leaves == (("What is A?", "26"),)
    assert found.confidence == pytest.approx(1 / (1 + math.exp(-2.99)))
    assert not found.is_low


def test_an_unsure_experts_answer_is_withheld() -> None:
    found = verdict([node(1, -0.1, -6.0)])
    assert found.leaves == (("What is A?", UNKNOWN),)
    assert found.is_low
    assert found.is_withheld


def test_the_bases_own_answer_is_given_and_marked() -> None:
    found = verdict([node(1, -6.0, expert="base")])
    assert found.leaves == (("What is A?", "26"),)
    assert found.is_low
    assert not found.is_withheld


@pytest.mark.parametrize(("policy", "said"), [("always", UNKNOWN), ("never", "26")])
def test_the_policy_says_what_is_withheld(policy: str, said: str) -> None:
    results = [node(1, -6.0, expert="base" if policy == "always" else "chemistry")]
    assert verdict(results, abstain=policy).leaves == (("What is A?", said),)


def test_of_several_leaves_only_the_unsure_one_is_withheld() -> None:
    found = verdict([node(1, 0.0), node(2, -9.0)])
    assert found.leaves == (("What is A?", "26"), ("What is B?", UNKNOWN))
    assert found.is_low
    assert not found.is_withheld


def test_a_leaf_is_no_surer_than_what_it_rests_on() -> None:
    found = verdict([node(1, -9.0), node(2, 0.0), node(3, 0.0)])
    assert found.leaves == (("What is B?", "26"), ("Is #1 even?", UNKNOWN))


def test_what_rests_on_an_unknown_response_is_unknown() -> None:
    results = [node(1, 0.0, response="I do not know."), node(2, 0.0), node(3, 0.0)]
    assert verdict(results).leaves[1] == ("Is #1 even?", UNKNOWN)


def test_an_engine_without_log_probabilities_gives_no_confidence() -> None:
    found = verdict([node(1)])
    assert found.leaves == (("What is A?", "26"),)
    assert found.confidence is None


def test_a_catalogue_without_calibration_states_everything() -> None:
    found = verdict([node(1, -9.0)], calibration=None)
    assert (found.leaves, found.confidence, found.is_low) == ((("What is A?", "26"),), None, False)


def test_the_setting_stands_before_the_calibrations_threshold() -> None:
    assert not verdict([node(1, -6.0)], min_confidence=0.01).is_low
    assert verdict([node(1, -0.01)], min_confidence=0.99).is_low


def test_leaves_that_are_sure_enough_each_may_be_low_together() -> None:
    found = verdict([node(1, -2.5), node(2, -2.5)])
    assert found.leaves == (("What is A?", "26"), ("What is B?", "26"))
    assert found.is_low


def test_the_base_has_a_threshold_of_its_own() -> None:
    strict = replace(WORST, base_min_confidence=0.99)
    assert verdict([node(1, -0.01, expert="base")], strict).is_low
    assert not verdict([node(1, -0.01)], strict).is_low


def test_a_plan_that_no_model_wrote_is_sure() -> None:
    features = expert_features(Plan(LINES), [(node(1, -0.5, -1.5), ROUTE)])
    assert features == (-2.0, -1.5, 0.0, 0.0, 0.9, 1.0)


def test_a_closure_holds_all_ancestors() -> None:
    lines = (*LINES, SubQuery(4, "What is #3 and #2?", (2, 3)))
    assert closure(lines, 4) == (1, 2, 3, 4)
    assert closure(lines, 2) == (2,)


@pytest.mark.parametrize("text", ["I do not know", "I do not know.", " i do not know! "])
def test_an_unknown_response_is_recognised(text: str) -> None:
    assert is_unknown(text)
    assert not is_unknown(f"{text} whether")


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "confidence.json"
    save_calibration(path, WORST)
    assert load_calibration(path) == WORST
    assert open_judge(path, AnswerConfig(), "base").calibration == WORST


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other/1"}, "its format is 'other/1'"),
        ({"min_confidence": 7}, "min_confidence is 7"),
        ({"expert": {"bias": 0, "weights": {"total": 1}}}, "its features are total"),
        ({"base": {"bias": "x", "weights": {}}}, "its features are"),
        ({"expert": None}, "cannot read"),
    ],
)
def test_a_damaged_calibration_is_one_clear_error(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "confidence.json"
    save_calibration(path, WORST)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change))
    with pytest.raises(ConfigError, match=r"train_confidence") as error:
        load_calibration(path)
    assert said in str(error.value)


def test_a_missing_calibration_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        load_calibration(tmp_path / "nowhere.json")


def test_an_unsure_part_is_withheld_beside_one_without_log_probabilities() -> None:
    """An expert at a server of its own took the mark from the other parts of the answer."""
    found = verdict([node(1), node(2, -9.0)])
    assert found.leaves[1][1] == UNKNOWN
    assert found.confidence is None
    assert found.is_low
