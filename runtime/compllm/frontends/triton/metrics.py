"""Numbers that change -> Triton's custom metrics, of whichever model of ours.

`core_metrics.py` and `comp_llm_metrics.py` say which numbers; a Triton model hands in the means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

Labels = tuple[tuple[str, str], ...]
Value = tuple[str, Labels, float]  # family, labels beside those of all metrics, number or total

GAUGE, COUNTER = "gauge", "counter"
FamilyTexts = Mapping[str, tuple[str, str]]  # name -> kind and meaning


class Metric(Protocol):
    """Triton's custom metric."""

    def set(self, value: float) -> None: ...
    def increment(self, value: float) -> None: ...


MakeMetric = Callable[[str, Mapping[str, str]], Metric]


class Families:
    """Metric families, which Triton wants made once each and kept.

    kind: `triton_python_backend_utils.MetricFamily`, which only a Python model can import.
    """

    def __init__(self, kind: Any, texts: FamilyTexts) -> None:
        self._families = {
            name: kind(
                name=name,
                description=text,
                kind=kind.COUNTER if each == COUNTER else kind.GAUGE,
            )
            for name, (each, text) in texts.items()
        }

    def __call__(self, family: str, labels: Mapping[str, str]) -> Any:
        return self._families[family].Metric(labels=dict(labels))


class Publisher:
    """Publishes what has changed: each change of a metric is a message between two processes."""

    def __init__(
        self, make_metric: MakeMetric, texts: FamilyTexts, labels: Mapping[str, str]
    ) -> None:
        """`labels`: those that every metric carries."""
        self._make_metric = make_metric
        self._texts = texts
        self._labels = dict(labels)
        self._metrics: dict[tuple[str, Labels], Metric] = {}
        self._published: dict[tuple[str, Labels], float] = {}

    def publish(self, values: Iterable[Value]) -> None:
        """Counters come as totals."""
        for family, labels, value in values:
            key = family, labels
            before = self._published.get(key)
            if value == before:
                continue
            if key not in self._metrics:
                self._metrics[key] = self._make_metric(family, self._labels | dict(labels))
            if self._texts[family][0] == COUNTER:
                self._metrics[key].increment(value - (before or 0))
            else:
                self._metrics[key].set(value)
            self._published[key] = value
