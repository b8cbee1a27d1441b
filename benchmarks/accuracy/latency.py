"""Seconds a question and what is resident: the other side of every accuracy.

One question at a time on an otherwise idle engine, nothing taken from the cache of answers. The
contestants take turns on each question, in an order that rotates and turns round from question to
question, since the engine reuses the prompt blocks of the one that asked the same before: rotated
alone, one would nearly always come behind its neighbour.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks.accuracy.contestants import MONOLITHIC, Ask, Contestant
from benchmarks.accuracy.engine import LocalEngine
from benchmarks.accuracy.lab import Lab, role_name
from benchmarks.accuracy.records import Composite
from benchmarks.report import Row, percentiles
from compllm.embedded.model import WEIGHTS_FILE

SEQUENTIAL = "compllm-3, one request at a time"


async def latency_rows(
    lab: Lab, engine: LocalEngine, chosen: Sequence[Contestant], records: Sequence[Composite]
) -> list[Row]:
    """`records`: the first of them warms up and is not counted."""
    live = replace(lab, backend=engine.backend())
    seconds: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        asks: dict[str, Ask] = {}
        for contestant in chosen:
            asks[contestant.name] = await stack.enter_async_context(contestant.open(live))
            if contestant.name == "compllm-3":
                slow = contestant.open(_one_at_a_time(live))
                asks[SEQUENTIAL] = await stack.enter_async_context(slow)
        for turn, record in enumerate(records):
            for name in in_turn([*asks], turn):
                start = time.perf_counter()
                await asks[name](record)
                if turn:
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
    return [
        {
            "contestant": name,
            "questions": len(times),
            "mean_s": round(statistics.fmean(times), 3),
            **{f"{key}_s": round(value, 3) for key, value in percentiles(times).items()},
        }
        for name, times in seconds.items()
        if times
    ]


def in_turn(names: Sequence[str], turn: int) -> list[str]:
    """Rotated by every second turn, the others backwards: each pair comes equally often either way
    round."""
    start = turn // 2 % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if turn % 2 else order


def _one_at_a_time(lab: Lab) -> Lab:
    """A single request in flight: the plan, then node after node, then the answer."""
    limits = replace(lab.config.limits, max_in_flight=1)
    return replace(lab, config=replace(lab.config, limits=limits))


def size_rows(lab: Lab, engine: LocalEngine, encoder: Path, two: Sequence[str]) -> list[Row]:
    """Parameters that a contestant needs resident, and their bytes as served: the base's file, its
    adapters and the encoder in half precision. two: the experts of compllm-2."""
    catalogue, config = lab.catalogue, lab.config
    experts = {expert.name: expert.adapter for expert in catalogue.experts if expert.adapter}
    roles = (
        role_name(config.generator.adapter, catalogue.generator),
        role_name(config.compose.adapter, catalogue.aggregator),
    )
    ours = [name for name in roles if name]
    adapters: dict[str, list[str]] = {
        "base": [],
        "compllm-3": [*experts.values(), *ours],
        "compllm-2": [*filter(None, map(experts.get, two)), *ours],
        "direct": [*experts.values()],
    }
    if MONOLITHIC in lab.adapters:
        adapters[MONOLITHIC] = [MONOLITHIC]
    base, sizes = base_parameters(engine), engine.num_adapter_parameters
    base_bytes = (engine.executor.engine_dir / WEIGHTS_FILE).stat().st_size
    num_encoder = encoder_parameters(encoder)
    rows: list[Row] = []
    for name, needed in adapters.items():
        num_adapters = sum(sizes[each] for each in needed)
        num_routing = num_encoder if name not in ("base", MONOLITHIC) else 0
        rows.append(
            {
                "contestant": name,
                "adapters": len(needed),
                "base_parameters": base,
                "adapter_parameters": num_adapters,
                "encoder_parameters": num_routing,
                "parameters": base + num_adapters + num_routing,
                "weights_mib": round((base_bytes + 2 * (num_adapters + num_routing)) / 2**20, 1),
            }
        )
    return rows


def base_parameters(engine: LocalEngine) -> int:
    """Of the decoder, its norms and its embedding, which most small models use at both ends."""
    shape = engine.shape
    config = json.loads((engine.executor.engine_dir / "config.json").read_text(encoding="utf-8"))
    num_tables = 1 if config.get("tie_word_embeddings") else 2
    linear = sum(rows * columns for rows, columns in shape.module_shapes().values())
    layers = shape.num_layers * (linear + 2 * shape.hidden)
    return layers + shape.hidden + num_tables * shape.hidden * shape.vocab


def encoder_parameters(path: Path) -> int:
    """From the header of its weights; 0 where they are in another format."""
    weights = path / "model.safetensors"
    if not weights.is_file():
        return 0
    with weights.open("rb") as handle:
        header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    return sum(
        math.prod(tensor["shape"])
        for name, tensor in header.items()
        if name != "__metadata__" and tensor["dtype"].startswith(("F", "BF"))
    )


def resident_mib() -> float:
    """Memory of this process that is in use now."""
    import psutil

    return round(float(psutil.Process().memory_info().rss) / 2**20, 1)
