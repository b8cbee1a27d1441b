"""Would looking drafts up in the prompt make the generator write its plans sooner?

    python -m benchmarks.engine.bench_lookup [--smoke] [--plans gold engine] [--limit N]

Plans copy words of the question, and of each other. Speculative decoding by look-up guesses the
next tokens from the latest place where the last one to three stood before, or else from what
followed them most often in plans remembered (as REST does: He et al., 2023), checks them all in one
step, and keeps those that greedy decoding would have written: the text stays the same, the steps
get fewer and longer. The engine drafts nothing: plans that are known (the data set's own, and what
the built engine's generator writes under its guide) are decoded again on paper (drafts.py), every
draft cut where the guide forbids it. What steps of more tokens take is measured elsewhere
(results/engine_profile.json); a draft's own time and that of the guide's masks, one for each token
that is checked, are measured here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.engine.drafts import (
    Case,
    Costs,
    Form,
    all_plan_ms,
    decode,
    look_up,
    one_plans_ms,
    remember,
)
from benchmarks.report import RESULTS, Report, add_arguments

if TYPE_CHECKING:
    from compllm.backends.tokenizer import Tokenizer
    from compllm.decompose import Generator
    from compllm.embedded.guide import Guide, GuideCompiler

# (lengths of n-grams that are looked for, in this order; plans remembered)
WAYS = (
    *(((1,), 0), ((2,), 0), ((3,), 0), ((3, 2), 0), ((3, 2, 1), 0)),
    *(((3, 2, 1), 30), ((3, 2), 300), ((3, 2, 1), 300)),
)
NUM_DRAFTS = (2, 3, 4, 5)
SOURCES = ("gold", "engine")
LIVE = (1, 4, 8)  # requests in the engine
_TRIES = 5
NOTE = (
    "speedup: time of all decoding steps without drafts over that with them; 'all plan': every live"
    " request writes a plan; 'one plans': the others decode one token a step, and are slowed."
)


# ---- plans ------------------------------------------------------------------------------------


def read_questions(path: Path, limit: int, seed: int) -> list[dict[str, Any]]:
    """Records of a set, drawn alike from each of its sources in turn."""
    by_source: dict[str, list[dict[str, Any]]] = {}
    with open(path, encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            by_source.setdefault(record["source"], []).append(record)
    rng = random.Random(seed)
    pools = [rng.sample(records, len(records)) for _, records in sorted(by_source.items())]
    turns = itertools.zip_longest(*pools)
    return [record for turn in turns for record in turn if record is not None][:limit]


def gold_plans(
    questions: Sequence[dict[str, Any]], prompts: Sequence[tuple[int, ...]], tokenizer: Tokenizer
) -> list[Case]:
    """The data set's own plans, as the generator was taught to write them."""
    from compllm.backend import Segment

    end = tokenizer.special.end_id
    plans = [(*tokenizer.encode((Segment(question["plan"]),)), end) for question in questions]
    sources = [question["source"] for question in questions]
    return [Case(*each) for each in zip(prompts, plans, sources, strict=True)]


def written_plans(
    engine: Path, golds: Sequence[Case], generator: Generator, tokenizer: Tokenizer
) -> list[Case]:
    """What the engine's generator writes, as far as anybody reads it."""
    import queue

    from compllm.embedded.executor import Executor
    from compllm.embedded.request import EngineRequest

    guide = plan_guide_of(generator)
    executor = Executor(engine)
    cases = []
    try:
        for gold in golds:
            events: queue.SimpleQueue[Any] = queue.SimpleQueue()
            request = EngineRequest(
                gold.prompt,
                generator.max_tokens,
                tokenizer.special.end_id,
                task_id=generator.adapter_id,
                guide_type="regex",
                guide=guide,
            )
            executor.submit(request, events.put)
            event = events.get()
            if event.error is not None:
                raise SystemExit(f"a plan was not written: {event.error}")
            whole = (*event.token_ids, tokenizer.special.end_id)
            kept = until_said_again(whole, tokenizer)
            cases.append(Case(gold.prompt, kept, gold.source))
    finally:
        executor.close()
    return cases


def plan_guide_of(generator: Generator) -> str:
    from compllm.plan import plan_guide

    is_trained = generator.adapter_id is not None
    return plan_guide(generator.limits.max_nodes, is_question_only=not is_trained).text


def until_said_again(tokens: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The plan up to the end of a line whose text stood before: there the decomposer stops reading
    (and look-up would shine for nothing)."""
    for count in range(1, len(tokens)):
        *lines, _ = tokenizer.decode(tokens[:count]).split("\n")
        texts = [line.partition("|")[2] for line in lines]
        if len(set(texts)) < len(texts):
            return tokens[:count]
    return tokens


# ---- the run ----------------------------------------------------------------------------------


def guide_costs(case: Case, guides: GuideCompiler, text: str, form: Form) -> tuple[float, float]:
    """ms of the guide's mask, and of a look-up with the guide's word on what it found; means over
    the tokens of one plan, of the least of some tries each."""
    import numpy as np

    def least_ms(work: Callable[[], object]) -> float:
        starts = [time.perf_counter()]
        for _ in range(_TRIES):
            work()
            starts.append(time.perf_counter())
        return 1e3 * min(b - a for a, b in itertools.pairwise(starts))

    guide = guides.start("regex", text, [case.tokens[-1]])
    row = np.zeros(guides._vocab_size, np.float32)
    masks, drafts = [], []
    for at, token in enumerate(case.tokens[:-1]):
        masks.append(least_ms(partial(guide.mask, row)))
        guide.accept(token)
        context = [*case.prompt, *case.tokens[: at + 1]]
        drafts.append(least_ms(partial(_checked, guide, context, form)))
    return statistics.fmean(masks), statistics.fmean(drafts)


def _checked(guide: Guide, context: Sequence[int], form: Form) -> int:
    return guide._matcher.validate_tokens(look_up(context, form))


@dataclass(frozen=True, slots=True)
class Bench:
    """What every row is computed with."""

    report: Report
    guides: GuideCompiler
    guide: str
    costs: Costs

    def drafts(self, cases: Sequence[Case], form: Form) -> list[list[tuple[int, int]]]:
        """`decode` of every case."""
        start = self.guides.start
        return [decode(case, form, start("regex", self.guide, [case.tokens[-1]])) for case in cases]

    def speedups(
        self, cases: Sequence[Case], steps: Sequence[Sequence[tuple[int, int]]]
    ) -> dict[str, float]:
        plain = [[0] * (len(case.tokens) - 1) for case in cases]
        drafts = [[drafted for drafted, _ in plan] for plan in steps]
        num_plain, num_steps = (sum(map(len, plans)) for plans in (plain, drafts))
        cells = {"tokens_per_step": num_plain / num_steps}
        for live in LIVE:
            before = all_plan_ms(plain, live, self.costs, is_drafting=False)
            after = all_plan_ms(drafts, live, self.costs, is_drafting=True)
            cells[f"all plan, {live} live"] = before / after
        for live in LIVE[1:]:
            before = one_plans_ms(plain, live, self.costs, is_drafting=False)
            after = one_plans_ms(drafts, live, self.costs, is_drafting=True)
            cells[f"one plans, {live} live"] = before / after
            cells[f"others slower, {live} live"] = after / num_steps * num_plain / before - 1
        return {name: round(value, 3) for name, value in cells.items()}

    def add_rows(self, source: str, cases: Sequence[Case], plans: Sequence[Sequence[int]]) -> None:
        """A row for each form of drafting, over all cases; then the best for one live request, by
        source of the questions. `plans` are there to be remembered."""
        best: tuple[float, Form] | None = None
        for (ngrams, num_plans), num_draft in itertools.product(WAYS, NUM_DRAFTS):
            form = remember(plans[:num_plans], ngrams, num_draft)
            steps = self.drafts(cases, form)
            flat = [step for plan in steps for step in plan]
            kept = [kept for drafted, kept in flat if drafted]
            cells = self.speedups(cases, steps)
            self.report.add(
                "look-up",
                plans=source,
                ngrams=",".join(map(str, ngrams)),
                remembered=num_plans,
                num_draft=num_draft,
                steps_that_draft=round(len(kept) / len(flat), 3),
                kept_of_a_draft=round(statistics.fmean(kept), 3) if kept else 0.0,
                **cells,
            )
            if best is None or cells["all plan, 1 live"] > best[0]:
                best = cells["all plan, 1 live"], form
        assert best is not None
        for name in sorted({case.source for case in cases}):
            own = [case for case in cases if case.source == name]
            cells = self.speedups(own, self.drafts(own, best[1]))
            kept_cells = {k: cells[k] for k in ("tokens_per_step", "all plan, 1 live")}
            self.report.add("best form by source", plans=source, source=name, **kept_cells)


def main(argv: Sequence[str] | None = None) -> int:
    from dataclasses import replace

    from compllm.assembly import make_generator
    from compllm.backends.tokenizer import Tokenizer
    from compllm.catalogue import load_catalogue
    from compllm.config import load_config
    from compllm.embedded.guide import GuideCompiler
    from compllm.formats.manifest import Manifest
    from compllm.lab.engine_profile import load_profile
    from compllm.paths import engine_dir, home_dir
    from compllm.prompts import generator_prompt

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_arguments(parser)
    parser.add_argument("--smoke", dest="quick", action="store_true", help="the same as --quick")
    parser.add_argument(
        "--plans", nargs="+", choices=("gold", "engine"), default=["gold", "engine"]
    )
    parser.add_argument("--limit", type=int, default=60, metavar="N", help="questions")
    parser.add_argument("--data", type=Path, metavar="DIR", help="default: in the cache")
    parser.add_argument("--engine", type=Path, metavar="DIR", help="default: the built one")
    parser.add_argument("--profile", default=str(RESULTS / "engine_profile.json"), metavar="FILE")
    arguments = parser.parse_args(argv)
    engine = arguments.engine or engine_dir()
    manifest = Manifest.read(engine)
    trained = {adapter.name: adapter.task_id for adapter in manifest.adapters}.get("generator")
    generator = replace(make_generator(load_catalogue(), load_config()), adapter_id=trained)
    tokenizer = Tokenizer.from_dir(engine)
    limit = min(arguments.limit, 5) if arguments.quick else arguments.limit
    data = (arguments.data or home_dir() / "datasets") / "generator"
    questions = read_questions(data / "test.jsonl", limit, arguments.seed)
    known = read_questions(data / "train.jsonl", max(n for _, n in WAYS), arguments.seed)
    golds, remembered = (
        gold_plans(
            records,
            [
                tuple(tokenizer.encode(generator_prompt(q, is_few_shot=trained is None)))
                for q in (record["question"] for record in records)
            ],
            tokenizer,
        )
        for records in (questions, known)
    )
    report = Report("bench_lookup", arguments, ("llguidance", "tokenizers"), NOTE)
    profile = load_profile(arguments.profile)
    text = plan_guide_of(generator)
    guides = GuideCompiler(engine, manifest.limits["vocab_size"], [tokenizer.special.end_id])
    for source in arguments.plans:
        is_gold = source == "gold"
        cases = golds if is_gold else written_plans(engine, golds, generator, tokenizer)
        allowed = [case for case in cases if is_allowed(case, guides, text)]
        mask_ms, draft_ms = guide_costs(allowed[0], guides, text, Form((3, 2, 1), NUM_DRAFTS[-1]))
        report.add(
            "plans",
            plans=source,
            questions=len(cases),
            under_the_guide=len(allowed),
            prompt_tokens=round(statistics.fmean(len(case.prompt) for case in allowed), 1),
            plan_tokens=round(statistics.fmean(len(case.tokens) for case in allowed), 1),
            mask_ms=round(mask_ms, 3),
            draft_ms=round(draft_ms, 3),
        )
        bench = Bench(report, guides, text, Costs(profile, mask_ms, draft_ms))
        bench.add_rows(source, allowed, [case.tokens for case in remembered])
    sizes = (1, 2, 3, 4, 6)
    report.add("ms of a step", **{f"{n} tokens": profile.step_time_ms(n) for n in sizes})
    for source, has_memory in itertools.product(arguments.plans, (False, True)):
        rows = [
            row
            for row in report.tables["look-up"]
            if row["plans"] == source and bool(row["remembered"]) == has_memory
        ]
        best = max(rows, key=lambda row: float(row["all plan, 1 live"] or 0))
        where = "question and memory" if has_memory else "question alone"
        report.summary[f"best at 1 live, {source}, {where}"] = best
    report.finish()
    return 0


def is_allowed(case: Case, guides: GuideCompiler, text: str) -> bool:
    """Can the guide be followed to the end of the plan? One with too many lines cannot."""
    guide = guides.start("regex", text, [case.tokens[-1]])
    *body, _ = case.tokens
    return len(case.tokens) > 1 and guide._matcher.validate_tokens(body) == len(body)


if __name__ == "__main__":
    raise SystemExit(main())
