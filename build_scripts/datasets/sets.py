"""All sets of make_datasets.py, split by split: experts, -P and -All, generator, aggregator and
questions for no expert.

One stream of random numbers a set and split: a larger set leaves the others as they are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compllm.build_scripts.datasets.aggregators import aggregator_set, more_aggregations
from compllm.build_scripts.datasets.bank import DOMAINS, Bank, read_bank
from compllm.build_scripts.datasets.composites import Composer
from compllm.build_scripts.datasets.everyday import more_plans
from compllm.build_scripts.datasets.experts import ExpertSets
from compllm.build_scripts.datasets.generators import (
    from_composites,
    invented_composites,
    singles,
)
from compllm.build_scripts.datasets.human import HumanSet, read_human
from compllm.build_scripts.datasets.kinds import SPLITS, Split
from compllm.build_scripts.datasets.leaves import Leaves
from compllm.build_scripts.datasets.ordinary import (
    Ordinary,
    ordinary_rows,
    ordinary_texts,
    read_strange,
)
from compllm.build_scripts.datasets.refresh import refreshed

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many examples of what. Experts' training sets follow from the kinds' exposures."""

    composites: tuple[int, int, int] = (3000, 300, 400)  # -P, and as many -All
    # Of -P and -All in the generator's training: wordings of made-up composites are worth more.
    generator: tuple[int, int] = (700, 1500)
    invented: int = 1700  # made-up -P, thrice as many made-up -All: for the generator alone
    singles: tuple[int, int, int] = (1300, 120, 200)
    aggregator: tuple[int, int, int] = (2000, 200, 400)
    aggregator_more: tuple[int, int, int] = (1300, 70, 120)
    per_kind: tuple[int, int] = (10, 40)  # expert examples of a kind in validation and test
    everyday: tuple[int, int, int] = (12000, 250, 400)  # the generator's questions as people ask
    ordinary: tuple[int, int, int] = (1300, 120, 120)  # questions for no expert
    break_train: int = 3100  # of the file's 3,863, about all that validation and test leave


@dataclass(frozen=True, slots=True)
class Settings:
    """What the sets are made from."""

    seed: int = 0
    num_elements: int = 36
    sizes: Sizes = Sizes()
    strategyqa: Path | None = None
    break_qdmr: Path | None = None
    subjects: Path | None = None  # questions with their subjects: what an expert does not know


def make_sets(settings: Settings) -> tuple[dict[str, Rows], dict[str, Any]]:
    """File name -> its rows, and what the manifest says of the human decompositions."""
    sources = Sources.read(settings)
    files: dict[str, Rows] = {}
    earlier = Earlier()
    for place, split in enumerate(SPLITS):
        sets = SplitSets(settings, sources, place, earlier).make()
        files |= {f"{name}/{split}.jsonl": rows for name, rows in sets.items()}
    notes = {
        source: {
            "dropped": each.num_dropped,
            "repeated": each.num_repeated,
            "over_cap": each.num_over_cap,
        }
        for source, each in sources.human.items()
    }
    return files, notes


@dataclass(frozen=True, slots=True)
class Sources:
    """What the sets of every split are drawn from."""

    bank: Bank
    strange: Callable[[str, Split], Sequence[str]]  # what an expert was never taught
    people: Mapping[Split, Sequence[str]]  # people's questions that are for no expert
    human: Mapping[str, HumanSet]  # people's plans, by the name of their source

    @classmethod
    def read(cls, settings: Settings) -> Sources:
        """Raises ConfigError for a file that cannot be read."""
        given = (
            ("strategyqa", settings.strategyqa, None),
            ("break", settings.break_qdmr, settings.sizes.break_train),
        )
        return cls(
            strange=read_strange(settings.subjects),
            people=ordinary_texts(settings.subjects),
            bank=read_bank(settings.num_elements),
            human={
                source: read_human(path, source, max_train)
                for source, path, max_train in given
                if path is not None
            },
        )


@dataclass(slots=True)
class Earlier:
    """What the splits before have, and a later one must not."""

    compositions: set[str] = field(default_factory=set)
    ordinary: set[str] = field(default_factory=set)  # texts of questions for no expert


class SplitSets:
    """The sets of one split; `place` is its position in SPLITS."""

    def __init__(self, settings: Settings, sources: Sources, place: int, earlier: Earlier) -> None:
        self._seed, self._sizes = settings.seed, settings.sizes
        self._sources, self._bank, self._earlier = sources, sources.bank, earlier
        self._place, self._split = place, SPLITS[place]
        self._is_training = self._split == "train"

    def make(self) -> dict[str, Rows]:
        """Set name -> its rows."""
        bank, split, place, rng = self._bank, self._split, self._place, self._rng
        sizes, people = self._sizes, self._sources.people[split]
        sets = self._experts()
        sets["p"], sets["all"] = p, everything = self._composites()
        sets["generator"] = plans = self._plans(p, everything)
        sets["generator-more"] = more_plans(
            bank, split, rng("everyday"), sizes.everyday[place], plans, people
        )
        sets["ordinary"] = self._ordinary(people)
        sets["aggregator"] = aggregations = aggregator_set(
            bank, split, rng("aggregator"), sizes.aggregator[place], [*p, *everything]
        )
        count = sizes.aggregator_more[place]
        sets["aggregator-more"] = more_aggregations(
            bank, split, rng("aggregator more"), count, aggregations, people
        )
        return sets

    def _rng(self, part: str) -> random.Random:
        return random.Random(f"{self._seed} {self._split} {part}")

    def _experts(self) -> dict[str, Rows]:
        bank, split = self._bank, self._split
        per_kind = None if self._is_training else self._sizes.per_kind[self._place - 1]
        sets: dict[str, Rows] = {}
        for domain in DOMAINS:
            drawn = ExpertSets(bank, split, self._rng(domain)).domain(domain, per_kind)
            sets[domain] = drawn
            strange = self._sources.strange(domain, split)
            rng = self._rng(f"{domain} more")
            sets[f"{domain}-more"] = refreshed(bank, domain, split, rng, drawn, strange)
        return sets

    def _composites(self) -> tuple[Rows, Rows]:
        """-P and -All."""
        bank, split, taken = self._bank, self._split, self._earlier.compositions
        count = self._sizes.composites[self._place]
        parallel = Composer(bank, split, self._rng("p"), taken=taken).parallel(count)
        # A plan of five sub-queries is not learned from one of three.
        composer = Composer(bank, split, self._rng("all"), is_hard=self._is_training, taken=taken)
        dependent = composer.dependent(count)
        taken |= {each.unordered for each in [*parallel, *dependent]}
        return (
            [each.record("p", split, index) for index, each in enumerate(parallel)],
            [each.record("all", split, index) for index, each in enumerate(dependent)],
        )

    def _plans(self, p: Rows, everything: Rows) -> Rows:
        """The generator's."""
        bank, split = self._bank, self._split
        num_p, num_all = self._sizes.generator if self._is_training else (None, None)
        plans = [*from_composites(p[:num_p], "p"), *from_composites(everything[:num_all], "all")]
        if self._is_training:
            made = invented_composites(bank, self._rng("invented"), self._sizes.invented)
            plans += [row for rows in made.values() for row in rows]
        plans += singles(bank, split, self._rng("singles"), self._sizes.singles[self._place])
        plans += [row for each in self._sources.human.values() for row in each.splits[split]]
        self._rng("order").shuffle(plans)
        return plans

    def _ordinary(self, people: Sequence[str]) -> Rows:
        rng = self._rng("ordinary")
        drawn = Ordinary(Leaves(self._bank, self._split, rng), people)
        count = self._sizes.ordinary[self._place]
        return ordinary_rows(drawn, rng, count, self._earlier.ordinary)
