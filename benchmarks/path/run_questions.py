"""The README's questions on the running server (`compllm up`), each with the engine's
counters.

    python benchmarks/path/run_questions.py

Writes benchmarks/results/ask_<name>.json: the object that `compllm ask --json` prints, and
beside it what the engine's counters rose by meanwhile: steps by number of requests in them,
steps that mixed adapters, and tokens. Two nodes of which the intervals overlap and a count of
steps with two or more requests are the proof of one batch.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# name -> (question, plan file or None)
QUESTIONS: dict[str, tuple[str, str | None]] = {
    "wide": (
        "What is the symbol of iron, how many codons encode leucine, and what is 4 times 3?",
        None,
    ),
    "given": (  # one-token answers end before the next line is planned; a given plan has all lines
        "What is the symbol of iron, how many codons encode leucine, and what is 4 times 3?",
        "docs/plans/wide.txt",
    ),
    "join": (
        "Is the atomic number of oxygen larger than the number of codons for leucine?",
        None,
    ),
    "chain": (
        "Which element's atomic number is the number of codons that encode the amino acid encoded "
        "by the codon C U G?",
        None,
    ),
    "diamond": (
        "Let X be the element with the symbol C. What is the number of protons of X plus the "
        "period of X?",
        None,
    ),
}
_COUNTER = re.compile(r"^(compllm_\w+)\{([^}]*)\} ([0-9.e+]+)$", re.MULTILINE)


def counters(metrics_url: str) -> dict[str, float]:
    """Our own counters by name, with the batch size where there is one."""
    with urllib.request.urlopen(metrics_url, timeout=10) as response:
        text = response.read().decode()
    found: dict[str, float] = {}
    for name, labels, value in _COUNTER.findall(text):
        size = re.search(r'batch_size="(\d+)"', labels)
        found[f"{name}[batch_size={size[1]}]" if size else name] = float(value)
    return found


def overlaps(nodes: Sequence[dict[str, float]]) -> list[list[float]]:
    """Pairs of node ids that ran at the same time."""
    return [
        [a["id"], b["id"]]
        for i, a in enumerate(nodes)
        for b in nodes[i + 1 :]
        if a["start_ms"] < b["end_ms"] and b["start_ms"] < a["end_ms"]
    ]


def main(argv: Sequence[str] | None = None) -> int:
    from compllm.server import triton_server

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args(argv)
    server = triton_server.status()
    if server is None:
        print("no server is running: start one with 'compllm up'", file=sys.stderr)
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, (question, plan) in QUESTIONS.items():
        command = [sys.executable, "-m", "compllm", "ask", "--json", question]
        if plan:
            command += ["--plan", str(ROOT / plan)]
        before = counters(server.metrics_url)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        after = counters(server.metrics_url)
        answer = json.loads(done.stdout)
        engine = {k: v - before.get(k, 0) for k, v in after.items() if v != before.get(k, 0)}
        record = {"answer": answer, "engine": engine, "overlapping": overlaps(answer["nodes"])}
        path = arguments.out / f"ask_{name}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        experts = ", ".join(node["expert"] for node in answer["nodes"])
        print(f"{name}: {experts}; at the same time: {record['overlapping']}; {answer['answer']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
