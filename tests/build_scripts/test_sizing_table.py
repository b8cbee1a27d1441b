"""The table of docs/GPU.md is what the build's arithmetic says."""

from __future__ import annotations

from pathlib import Path

from compllm.build_scripts.sizing_table import render, rows

DOCS = Path(__file__).parents[2] / "docs" / "GPU.md"


def test_documented_table_is_the_computed_one() -> None:
    text = DOCS.read_text(encoding="utf-8")
    _, _, rest = text.partition("<!-- sizing_table -->\n")
    table, _, _ = rest.partition("<!-- /sizing_table -->")
    assert table.strip() == render(), "run build_scripts/sizing_table.py and paste its output"


def test_larger_bases_leave_fewer_tokens() -> None:
    found = {(row.gpu, row.model): row for row in rows()}
    h100 = {model: row for (gpu, model), row in found.items() if "H100" in gpu}
    assert h100["Llama-3.2-1B"].kv_tokens > h100["Llama-3.1-8B"].kv_tokens
    assert h100["Llama-3.1-70B"].num_gpus > 1
