"""The bound report: where a query's time went, and what the graph would have allowed.

After the path, on what it recorded:

record     the JSON of `ask --json`, or a line of `replay`, checked -> Run
schedule   Run -> what each step waited for: critical path, slack, what-if
report     both -> Report: shares, bound, ranking; as JSON and as tables
gantt      Report -> PNG or SVG
perfetto   Report -> a trace for Perfetto or Chrome
"""

from __future__ import annotations

from compllm.lab.explain.record import Run, read_run, run_of
from compllm.lab.explain.report import Report, explain_run

__all__ = ["Report", "Run", "explain_run", "read_run", "run_of"]
