"""An engine profile out of the result files of our own benchmarks.

    bench_engine            step time by batch size, prefill's time per token    needed
    bench_decode            what context and a mixed step add                    else nothing
    bench_scheduler_engine  from a parent's end to the child's start             else nothing

Which of them a file is, its own "name" says. `seen` takes instead the step times that an engine
counted while it carried a load. Nothing is searched for: each number follows from a
few others by arithmetic, and the profile's note says what was read.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compllm.errors import ConfigError
from compllm.lab.engine_profile import EngineProfile, HostTimes

if TYPE_CHECKING:
    from compllm.lab.replay.counters import TimedSteps

CONTESTANT = "ours, 4 adapters"  # the row of bench_engine: experts mixed, as they are served
_PROMPT_TOKENS = 32  # of every request of bench_engine but the long one
_ENOUGH_STEPS = 20  # of a size, that their mean counts
_MEAN_CONTEXT = 64  # tokens, while bench_engine's requests decode 64 tokens after those
_LONG_PROMPT = re.compile(r"1 request, (\d+)-token prompt")
_REQUESTS = re.compile(r"(\d+) requests")

Row = Mapping[str, Any]


def fit_profile(paths: Sequence[Path], contestant: str = CONTESTANT) -> EngineProfile:
    """contestant: the row of bench_engine's tables. Raises ConfigError for a file that is none of
    the three, or lacks what is read."""
    results = dict(_read(path) for path in paths)
    if "bench_engine" not in results:
        raise ConfigError("a profile needs a bench_engine.json: its step times make the engine")
    try:
        return _fitted(results, contestant)
    except (KeyError, TypeError, ValueError, StopIteration, ZeroDivisionError) as error:
        names = ", ".join(results)
        raise ConfigError(
            f"{names}: {error!r} is missing or no number: are these results of this version?"
        ) from error


def seen(profile: EngineProfile, steps: Sequence[TimedSteps]) -> EngineProfile:
    """The profile with the times that the engine's own steps took, as it counted them under load.

    Sizes that came hardly ever keep the profile's time. What contexts add is in the times already.
    What a step of prefill alone takes beside its tokens stays as it is: a sum cannot separate it
    from them.
    """
    decoding = [each for each in steps if not each.has_prefill and each.num_steps >= _ENOUGH_STEPS]
    times = dict(profile.step_ms) | {
        each.num_decodes: each.total_ms / each.num_steps for each in decoding
    }
    found = replace(
        profile, step_ms=tuple(sorted(times.items())), context_ms_per_token=0.0, mixed_ms=0.0
    )
    alone = [each for each in steps if each.has_prefill and not each.num_decodes]
    mixed = [each for each in steps if each.has_prefill and each.num_decodes]
    if num_tokens := sum(each.num_prefilled for each in alone):
        own_ms = sum(each.total_ms - each.num_steps * found.step_time_ms(0) for each in alone)
        found = replace(found, prefill_ms_per_token=max(own_ms / num_tokens, 0.0))
    if num_mixed := sum(each.num_steps for each in mixed):
        more_ms = sum(
            each.total_ms
            - each.num_steps * found.step_time_ms(each.num_decodes)
            - each.num_prefilled * found.prefill_ms_per_token
            for each in mixed
        )
        found = replace(found, mixed_ms=max(more_ms / num_mixed, 0.0))
    return replace(
        found, name="seen", note=f"{profile.note}; step times as the engine counted them"
    )


def _fitted(results: Mapping[str, Any], contestant: str) -> EngineProfile:
    tables = results["bench_engine"]["tables"]
    context_ms, mixed_ms = _decode_terms(results.get("bench_decode"))
    prefill_step_ms, prefill_ms = _prefill(_row(tables["ttft_ms"], contestant))
    steps = [
        (size, max(ms - size * _MEAN_CONTEXT * context_ms, 0.0))
        for size, ms in _by_requests(_row(tables["decode_ms"], contestant))
    ]
    return EngineProfile(
        name=f"{contestant}, {results['bench_engine']['hardware']['cpu']}",
        step_ms=((0, prefill_step_ms), *steps),
        prefill_ms_per_token=prefill_ms,
        context_ms_per_token=context_ms,
        mixed_ms=mixed_ms,
        host=HostTimes(handover_ms=_dispatch_latency(results.get("bench_scheduler_engine"))),
        note="fitted from "
        + ", ".join(f"{name} of {result['created']}" for name, result in results.items()),
    )


def _read(path: Path) -> tuple[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        name = value["name"]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no result file of a benchmark ({error!r})") from error
    known = ("bench_engine", "bench_decode", "bench_scheduler_engine")
    if name not in known:
        raise ConfigError(f"{path} is of {name!r}; a profile is fitted from {', '.join(known)}")
    return name, value


def _row(table: Sequence[Row], contestant: str) -> Row:
    for row in table:
        if row["contestant"] == contestant:
            return row
    names = ", ".join(repr(row["contestant"]) for row in table)
    raise ConfigError(f"bench_engine has no contestant {contestant!r}; there are {names}")


def _by_requests(row: Row) -> list[tuple[int, float]]:
    matches = ((_REQUESTS.fullmatch(key), ms) for key, ms in row.items())
    return sorted((int(match[1]), float(ms)) for match, ms in matches if match)


def _prefill(ttft: Row) -> tuple[float, float]:
    """ms of a step of prefill beside its tokens, and per token: a line through the first-token
    times of one short and one long prompt alone."""
    key = next(key for key in ttft if _LONG_PROMPT.fullmatch(key))
    match = _LONG_PROMPT.fullmatch(key)
    assert match is not None
    short_ms, long_ms = float(ttft["1 requests"]), float(ttft[key])
    per_token = (long_ms - short_ms) / (int(match[1]) - _PROMPT_TOKENS)
    return max(short_ms - _PROMPT_TOKENS * per_token, 0.0), per_token


def _decode_terms(result: Any) -> tuple[float, float]:
    """ms per token of context, and what a step takes more when it holds a prefill too: its decodes
    go the way of the paged attention then."""
    if result is None:
        return 0.0, 0.0
    rows = [row for row in result["tables"]["decoding step"] if row["adapters"] == 4]
    fixed, paged = (
        {(row["sequences"], row["context"]): row["ms"] for row in rows if row["form"] == form}
        for form in ("operation, fixed shape", "paged attention")
    )
    short, long = min(context for _, context in fixed), max(context for _, context in fixed)
    sizes = sorted({size for size, _ in fixed})
    growth_ms = sum(fixed[size, long] - fixed[size, short] for size in sizes)
    context_ms = growth_ms / (sum(sizes) * (long - short))
    return max(context_ms, 0.0), max(statistics.median(paged[at] - fixed[at] for at in fixed), 0.0)


def _dispatch_latency(result: Any) -> float:
    if result is None:
        return 0.0
    table = next(rows for name, rows in result["tables"].items() if name.startswith("handover"))
    return statistics.median(float(row["p50_ms"]) for row in table if row["backend"] == "engine")
