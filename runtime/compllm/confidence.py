"""How sure an answer is: log-probabilities of plan and responses -> a calibrated probability.

After execute, before compose. The engine reports how likely each token was; how often answers with
such tokens are right was measured on validation questions (`build_scripts/train_confidence.py`),
apart for experts and for the base. A leaf of the plan is as sure as everything it rests on: the
plan and the nodes above it. The calibration belongs to the adapters and the base that it was
measured with. It is apart from the route's score, which says whose question it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compllm.config import AnswerConfig
from compllm.errors import ConfigError
from compllm.prompts import UNKNOWN
from compllm.types import NodeResult, Plan, Route, SubQuery

FORMAT = "compllm-confidence/1"
EXPERT_FEATURES = ("total", "worst", "plan_worst", "plan_mean", "similarity", "num_nodes")
BASE_FEATURES = ("total", "worst", "mean", "first", "length", "similarity")
_LEAST = -12.0  # a log-probability below this says no more
_MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Scale:
    """Logistic regression on named features: sigmoid(bias + weights . features)."""

    weights: tuple[float, ...]
    bias: float

    def __call__(self, features: Sequence[float]) -> float:
        score = self.bias + sum(w * x for w, x in zip(self.weights, features, strict=True))
        return 1 / (1 + math.exp(-max(min(score, 30.0), -30.0)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What makes a probability of log-probabilities, and below which an answer is not given."""

    expert: Scale  # of EXPERT_FEATURES, over all experts' nodes that a leaf rests on
    base: Scale  # of BASE_FEATURES, of one node of the base
    min_confidence: float  # of what experts had a part in; chosen by a risk-coverage curve
    base_min_confidence: float  # of the base alone; chosen so that most of its errors are below
    record: Mapping[str, Any] = field(default_factory=dict)  # how it was made; not read here

    def confidence(
        self, plan: Plan, nodes: Sequence[tuple[NodeResult, Route]], base: str
    ) -> float | None:
        """The probability that a leaf's response is right. nodes: the leaf and all it rests on.

        None where the engine reported no log-probabilities. 0 where one of them is not known.
        """
        if any(is_unknown(node.response) or node.status != "done" for node, _ in nodes):
            return 0.0
        if any(not node.log_probs for node, _ in nodes):
            return None
        product = 1.0
        experts = [(node, route) for node, route in nodes if node.expert != base]
        if experts:
            product *= self.expert(expert_features(plan, experts))
        for node, route in nodes:
            if node.expert == base:
                product *= self.base(base_features(node, route))
        return product


@dataclass(frozen=True, slots=True)
class Verdict:
    """What may be said of a query's leaves, and how sure it is."""

    leaves: tuple[tuple[str, str | None], ...]  # (question, response); UNKNOWN where not sure
    confidence: float | None = None  # that all that is stated is right
    is_low: bool = False  # a leaf, or all that is stated together, is below the threshold
    is_withheld: bool = False  # nothing is stated


@dataclass(frozen=True, slots=True)
class Judge:
    """A calibration at work, with the settings' threshold and policy."""

    calibration: Calibration | None  # None: the catalogue has none, and everything is stated
    settings: AnswerConfig
    base: str  # name of the base among the experts

    def threshold(self, calibration: Calibration, *, is_base: bool) -> float:
        """The setting's, or the calibration's own."""
        if self.settings.min_confidence >= 0:
            return self.settings.min_confidence
        return calibration.base_min_confidence if is_base else calibration.min_confidence

    def judge(
        self,
        plan: Plan,
        routed: Sequence[tuple[SubQuery, Route]],
        results: Sequence[NodeResult],
        leaves: Sequence[int],
        pairs: Sequence[tuple[str, str | None]],
    ) -> Verdict:
        """routed and results: the nodes by id. leaves: ids, and in the same order their `pairs` of
        question and response."""
        calibration = self.calibration
        if calibration is None:
            return Verdict(tuple(pairs))
        nodes = {
            line.id: (result, route) for (line, route), result in zip(routed, results, strict=True)
        }
        stated: list[float] = []
        withheld: list[float] = []
        said: list[tuple[str, str | None]] = []
        is_low = is_unknown = False
        for leaf, (question, response) in zip(leaves, pairs, strict=True):
            below = [nodes[each] for each in closure((line for line, _ in routed), leaf)]
            confidence = calibration.confidence(plan, below, self.base)
            if confidence is None:  # of an engine without log-probabilities; others are judged
                is_unknown = True
                said.append((question, response))
                continue
            is_base = all(node.expert == self.base for node, _ in below)
            is_leaf_low = confidence < self.threshold(calibration, is_base=is_base)
            is_low |= is_leaf_low
            if is_leaf_low and response is not None and self._abstains(is_base):
                withheld.append(confidence)
                response = UNKNOWN
            else:
                stated.append(confidence)
            said.append((question, response))
        if is_unknown:
            return Verdict(tuple(said), None, is_low)
        sure = math.prod(stated) if stated else max(withheld, default=0.0)
        # Of several leaves, each sure enough, one may still be wrong.
        is_base = all(result.expert == self.base for result in results)
        is_low |= sure < self.threshold(calibration, is_base=is_base)
        return Verdict(tuple(said), sure, is_low, is_withheld=not stated)

    def _abstains(self, is_base: bool) -> bool:
        policy = self.settings.abstain
        return policy == "always" or (policy == "experts" and not is_base)


def open_judge(path: Path | None, settings: AnswerConfig, base: str) -> Judge:
    """The judge of a catalogue that names this calibration. Raises ConfigError."""
    return Judge(load_calibration(path) if path else None, settings, base)


def expert_features(plan: Plan, nodes: Sequence[tuple[NodeResult, Route]]) -> tuple[float, ...]:
    """EXPERT_FEATURES of the nodes together; a plan that no model wrote is sure."""
    totals = [sum(node.log_probs) for node, _ in nodes]
    plan_log_probs = plan.log_probs or (0.0,)
    return (
        max(sum(totals), _LEAST),
        max(min(min(node.log_probs) for node, _ in nodes), _LEAST),
        max(min(plan_log_probs), _LEAST),
        sum(plan_log_probs) / len(plan_log_probs),
        min(route.similarity for _, route in nodes),
        float(len(nodes)),
    )


def base_features(node: NodeResult, route: Route) -> tuple[float, ...]:
    """BASE_FEATURES of one node."""
    log_probs = node.log_probs
    return (
        max(sum(log_probs), 3 * _LEAST),
        max(min(log_probs), _LEAST),
        sum(log_probs) / len(log_probs),
        max(log_probs[0], _LEAST),
        math.log(len(log_probs)),
        route.similarity,
    )


def is_unknown(response: str) -> bool:
    """Whether a response says that it is none."""
    return response.strip().rstrip(".!").casefold() == UNKNOWN.casefold()


def closure(sub_queries: Iterable[SubQuery], leaf: int) -> tuple[int, ...]:
    """The ids of a sub-query and of all that it rests on, in their order."""
    parents = {sub_query.id: sub_query.parents for sub_query in sub_queries}
    found: set[int] = set()
    waiting = [leaf]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            waiting += parents[each]
    return tuple(sorted(found))


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write it whole, or leave what was there. Raises OSError."""
    table = {
        "format": FORMAT,
        "min_confidence": calibration.min_confidence,
        "base_min_confidence": calibration.base_min_confidence,
        "expert": _table(EXPERT_FEATURES, calibration.expert),
        "base": _table(BASE_FEATURES, calibration.base),
        "record": dict(calibration.record),
    }
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def load_calibration(path: Path) -> Calibration:
    """Read and check a calibration. Raises ConfigError that names the file and the remedy."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["format"] != FORMAT:
            raise ValueError(f"its format is {table['format']!r}, this version reads {FORMAT}")
        return Calibration(
            _scale(table["expert"], EXPERT_FEATURES),
            _scale(table["base"], BASE_FEATURES),
            _threshold(table, "min_confidence"),
            _threshold(table, "base_min_confidence"),
            table["record"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"cannot read the confidence calibration in {path}: {reason}: make it with "
            "'python -m compllm.build_scripts.train_confidence', or remove [confidence] from the "
            "catalogue"
        ) from error


def _table(names: Sequence[str], scale: Scale) -> dict[str, Any]:
    return {"bias": scale.bias, "weights": dict(zip(names, scale.weights, strict=True))}


def _scale(table: Mapping[str, Any], names: Sequence[str]) -> Scale:
    weights = table["weights"]
    if set(weights) != set(names):
        raise ValueError(f"its features are {', '.join(weights)}, expected {', '.join(names)}")
    return Scale(tuple(_finite(weights[name]) for name in names), _finite(table["bias"]))


def _threshold(table: Mapping[str, Any], name: str) -> float:
    value = _finite(table[name])
    if not 0 <= value <= 1:
        raise ValueError(f"its {name} is {value}, expected a number from 0 to 1")
    return value


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"it holds {value!r}, expected a finite number")
    return float(value)
