"""Both evaluations from end to end on a real engine of two random layers: it knows nothing, but
every part of the way is the real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.accuracy import engine as engines
from benchmarks.accuracy import eval_accuracy, eval_plans
from benchmarks.tables import markdown
from engines import make_engine
from evaluation_data import write_datasets
from helpers import MakeAdapter, bare_catalogue

from compllm.backend import GenerateRequest, Segment, collect
from compllm.errors import BackendRejected, ConfigError
from compllm.types import SamplingParams


@pytest.fixture(scope="module")
def engine_dir(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine(tiny_checkpoint, tmp_path_factory.mktemp("engine") / "tiny", "int8", {})


@pytest.fixture
def arguments(engine_dir: Path, encoder_dir: Path, tmp_path: Path) -> list[str]:
    data = write_datasets(tmp_path / "data")
    config = tmp_path / "config.toml"
    config.write_text(f"catalogue = '{bare_catalogue(tmp_path)}'\n", encoding="utf-8")
    places = {
        **{"--engine": engine_dir, "--data": data},
        **{"--store": tmp_path / "kept", "--config": config},
    }
    return [str(part) for pair in places.items() for part in pair] + ["--out", str(tmp_path)]


def test_accuracy_is_measured_in_all_its_parts(
    arguments: list[str], tmp_path: Path, tiny_checkpoint: Path, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(tiny_checkpoint, "monolithic", rank=2)
    options = [*arguments, "--quick", "--limit", "2", "--latency-queries", "1"]
    assert eval_accuracy.main([*options, "--adapter", f"monolithic={adapter}"]) == 0
    data = json.loads((tmp_path / "eval_accuracy.json").read_text())
    names = {row["contestant"] for row in data["tables"]["accuracy"]}
    assert names == {
        *("compllm-3", "compllm-2", "base", "base-cot", "monolithic", "direct", "all-nodes"),
        *("gold-plan", "gold-routes", "gold-answers", "joined"),
    }
    assert len(data["tables"]) == 11
    parameters = {row["contestant"]: row for row in data["tables"]["parameters"]}
    assert parameters["monolithic"]["adapter_parameters"] > 0
    assert parameters["compllm-3"]["weights_mib"] > parameters["base"]["weights_mib"] > 0
    assert (tmp_path / "eval_accuracy.png").stat().st_size > 0
    assert "| compllm-3 |" in (tmp_path / "eval_accuracy.md").read_text()


def test_a_second_run_takes_everything_from_the_first(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert eval_plans.main(arguments) == 0
    first = json.loads((tmp_path / "eval_plans.json").read_text())
    monkeypatch.setattr(engines.ExecutorBackend, "generate", None)  # nothing may be asked again
    assert eval_plans.main(arguments) == 0
    second = json.loads((tmp_path / "eval_plans.json").read_text())
    assert second["tables"] == first["tables"]
    assert {row["source"] for row in first["tables"]["how many sub-queries"]} == {
        *("p", "all", "strategyqa", "break", "single")
    }
    graphs = first["tables"]["graphs, beside the best constant plan"]
    both = [row for row in graphs if row["source"] == "strategyqa and break"]
    assert {row["questions"] for row in both} == {2}
    # One graph cannot be both gold ones.
    assert [row["best_constant_%"] for row in both if row["measure"] == "graph exact"] == [50.0]


def test_wrong_arguments_are_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert eval_plans.main([*arguments, "--source", "nowhere"]) == 1
    assert "no source 'nowhere'" in capsys.readouterr().err
    assert eval_accuracy.main([*arguments, "--contestants", "nobody"]) == 1
    assert "no contestant 'nobody'" in capsys.readouterr().err


async def test_an_adapter_that_is_loaded_live_changes_the_tokens(
    engine_dir: Path, tiny_checkpoint: Path, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(tiny_checkpoint, "strong", rank=4, scale=1.0)
    engine = engines.open_engine(engine_dir, [f"strong={adapter}"])
    try:
        backend, sampling = engine.backend(), SamplingParams(max_tokens=8)
        texts = []
        for adapter_id in (None, engine.adapters["strong"]):
            request = GenerateRequest("r", (Segment("iron"),), sampling, adapter_id=adapter_id)
            text, last = await collect(backend, request)
            assert last.usage is not None
            assert last.usage.num_output_tokens > 0
            texts.append(text)
        assert texts[0] != texts[1]
        with pytest.raises(BackendRejected, match="12345"):
            await collect(backend, GenerateRequest("r", (Segment("a"),), adapter_id=12345))
    finally:
        engine.close()
    with pytest.raises(ConfigError, match="NAME=DIR"):
        engines.open_engine(engine_dir, ["nonsense"])


def test_markdown_puts_intervals_into_one_column() -> None:
    row = {"set": "p|q", "exact_%": 50.0, "exact_low": 40.25, "exact_high": 60.0, "n": None}
    text = markdown("Title", {"a table": [row]}, "A note.")
    assert "# Title\n\nA note.\n\n## a table" in text
    assert "| set | exact % | n |" in text
    assert "| p\\|q | 50.0 (40.2 to 60.0) |  |" in text
