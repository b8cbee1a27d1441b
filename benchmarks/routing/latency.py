"""What one sub-query costs before it reaches an expert: its vector and its route.

New texts each time: a text seen before costs nothing, its vector is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.report import Cell, percentiles
from compllm.routing.embed import SentenceEncoder
from compllm.routing.route import Router

_WARM_UP = 10


async def measure(
    router: Router, encoder: SentenceEncoder, texts: Sequence[str]
) -> dict[str, Cell]:
    """Milliseconds for one text at a time, as the path asks for it."""
    whole, routing, cpu = [], [], []
    for number, text in enumerate(texts):
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        vectors = await encoder.encode([text])
        embedded_s = time.perf_counter()
        router.route(vectors)
        end_s = time.perf_counter()
        if number >= _WARM_UP:
            whole.append((end_s - start_s) * 1e3)
            routing.append((end_s - embedded_s) * 1e6)
            cpu.append((time.process_time() - start_cpu_s) * 1e3)
    p = percentiles(whole)
    return {
        "texts": len(whole),
        "median_ms": round(float(np.median(whole)), 2),
        "p95_ms": round(p["p95"], 2),
        "min_ms": round(min(whole), 2),
        "cpu_median_ms": round(float(np.median(cpu)), 2),
        "route_us": round(float(np.median(routing))),
        "load_average": round(os.getloadavg()[0], 2),
    }
