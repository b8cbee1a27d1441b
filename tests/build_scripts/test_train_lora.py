"""Training from data set to adapter: what is written, and that a stopped run goes on as if it had
not stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engines import make_engine
from helpers import MakeAdapter
from training_data import SETTINGS, WORDINGS, facts, write_dataset

from compllm.backends.tokenizer import Tokenizer
from compllm.build_scripts.build_openvino import AdapterSource, build_engine
from compllm.build_scripts.train_lora import main, parse_times, train_adapter
from compllm.build_scripts.training.examples import load_examples
from compllm.build_scripts.verify_lora import main as verify_main
from compllm.errors import ConfigError
from compllm.formats.adapters import read_peft
from compllm.formats.checkpoint import validate_checkpoint


def test_training_lowers_the_loss(trained: Path) -> None:
    curve = json.loads((trained / "manifest.json").read_text())["curve"]
    assert [point["step"] for point in curve] == [3, 6]
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]


def test_training_goes_on_from_an_adapter(
    trained: Path, dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, learning_rate=1e-9, epochs=1, num_evaluations=1)
    manifest = train_adapter(
        [dataset],
        tmp_path / "more",
        settings,
        checkpoint=tiny_checkpoint,
        work=tmp_path / "work",
        start=trained,
        times={"odd": 2},
    )
    assert manifest is not None
    before = json.loads((trained / "manifest.json").read_text())
    assert manifest["start"] == before["sha256"]
    assert manifest["times"] == {"odd": 2}
    assert manifest["curve"][0]["loss"] == pytest.approx(before["best"]["loss"], rel=1e-2)


def test_training_does_not_go_on_at_another_rank(
    trained: Path, dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="start from it with --rank 4 --alpha 8"):
        train_adapter(
            [dataset],
            tmp_path / "more",
            replace(SETTINGS, rank=2),
            checkpoint=tiny_checkpoint,
            work=tmp_path / "work",
            start=trained,
        )


@pytest.mark.parametrize("given", ["odd", "=2", "symbol=-1", "symbol=two"])
def test_times_must_be_whole_numbers_of_kinds(given: str) -> None:
    with pytest.raises(ConfigError, match="expected KIND=N"):
        parse_times([given])


def test_a_kind_that_no_example_has_is_named(
    dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="'charge'"):
        train_adapter(
            [dataset],
            tmp_path / "more",
            SETTINGS,
            checkpoint=tiny_checkpoint,
            work=tmp_path / "work",
            times={"charge": 2},
        )


def test_the_manifest_says_what_it_was_made_of(
    trained: Path, dataset: Path, tiny_checkpoint: Path
) -> None:
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["settings"]["rank"] == 4
    assert manifest["settings"]["alpha"] == 8
    assert set(manifest["data"]) == {"chemistry/train.jsonl", "chemistry/validation.jsonl"}
    assert manifest["steps"] == 6
    assert manifest["tokens"] > manifest["tokens_computed"] > 0
    assert {"torch", "peft", "transformers"} <= set(manifest["versions"])
    shape = validate_checkpoint(tiny_checkpoint)
    assert manifest["lora_task_id"] == read_peft(trained, shape).task_id
    assert str(dataset.parent) not in json.dumps(manifest)


def test_the_adapter_is_small_and_an_engine_takes_it(
    trained: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(trained / "adapter_model.safetensors")
    assert {str(value.dtype) for value in tensors.values()} == {"float16"}
    source = AdapterSource(trained, trained.name)
    manifest = build_engine(tiny_checkpoint, [source], tmp_path / "engine", "fp16")
    entry = json.loads((trained / "manifest.json").read_text())
    assert manifest.adapters[0].task_id == entry["lora_task_id"]


def test_peft_reads_back_what_was_trained(
    trained: Path, dataset: Path, tiny_checkpoint: Path
) -> None:
    """The loss of the manifest's best point, computed by transformers and PEFT alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_dir(tiny_checkpoint)
    examples, _ = load_examples([dataset], "validation", tokenizer, max_tokens=192)
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(trained)).eval()
    losses = []
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.response_ids]])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, len(example.prompt_ids) - 1 : -1]
        target = torch.tensor(example.response_ids)
        losses += torch.nn.functional.cross_entropy(logits, target, reduction="none").tolist()
    best = json.loads((trained / "manifest.json").read_text())["best"]
    assert sum(losses) / len(losses) == pytest.approx(best["loss"], rel=2e-3)


def test_the_same_seed_gives_the_same_adapter(
    trained: Path, dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    again = train_adapter(
        [dataset], tmp_path / "chem", SETTINGS, checkpoint=tiny_checkpoint, work=tmp_path / "work"
    )
    assert again is not None
    assert again["sha256"] == json.loads((trained / "manifest.json").read_text())["sha256"]


def test_it_ends_early_when_validation_gets_no_better(
    dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, learning_rate=1e-9, epochs=20, num_evaluations=20, patience=2)
    manifest = train_adapter(
        [dataset], tmp_path / "chem", settings, checkpoint=tiny_checkpoint, work=tmp_path / "work"
    )
    assert manifest is not None
    assert manifest["steps"] < 40


def test_a_loss_that_explodes_is_an_error_with_a_remedy(
    dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, learning_rate=1e30, max_norm=1e30, warmup_steps=1, epochs=9)
    with pytest.raises(ConfigError, match="lower learning rate"):
        train_adapter(
            [dataset], tmp_path / "chem", settings, checkpoint=tiny_checkpoint, work=tmp_path / "w"
        )


def test_a_union_trains_on_all_of_its_data_sets(
    dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    other = write_dataset(tmp_path / "more", train=facts(2), validation=facts(1))
    place = ["--checkpoint", str(tiny_checkpoint), "--work", str(tmp_path / "work")]
    data = ["--union", str(dataset), str(other), "--epochs", "0.5"]
    code = main([*data, *place, "--out", str(tmp_path / "mono")])
    assert code == 0
    manifest = json.loads((tmp_path / "mono" / "manifest.json").read_text())
    assert manifest["num_examples"]["train"] == 8 * len(WORDINGS)
    assert "more/train.jsonl" in manifest["data"]


def test_a_union_may_be_as_large_as_several_adapters_together(
    trained: Path, dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    place = ["--checkpoint", str(tiny_checkpoint), "--work", str(tmp_path / "work")]
    data = ["--union", str(dataset), "--epochs", "0.5", "--like", str(trained), str(trained)]
    assert main([*data, *place, "--out", str(tmp_path / "mono")]) == 0
    one, two = (
        sum(weights.a.size + weights.b.size for weights in adapter.modules.values())
        for adapter in (
            read_peft(folder, validate_checkpoint(tiny_checkpoint))
            for folder in (trained, tmp_path / "mono")
        )
    )
    assert two == 2 * one


def test_a_sweep_compares_settings_and_writes_no_adapter(
    dataset: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dataset", str(dataset), "--checkpoint", str(tiny_checkpoint)]
    arguments += ["--work", str(tmp_path / "work"), "--epochs", "0.5"]
    assert main([*arguments, "--sweep", "lr=1e-2,1e-9", "rank=2"]) == 0
    runs = json.loads((tmp_path / "work" / "sweep.json").read_text())["runs"]
    assert [(run["learning_rate"], run["rank"]) for run in runs] == [(1e-2, 2), (1e-9, 2)]
    assert capsys.readouterr().out.startswith("learning_rate | rank | exact | loss")


@pytest.mark.parametrize(
    ("grid", "says"), [("speed=3", "expected one of lr, rank"), ("rank=big", "invalid literal")]
)
def test_a_sweep_over_something_else_is_one_line(
    grid: str,
    says: str,
    dataset: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--dataset", str(dataset), "--checkpoint", str(tiny_checkpoint)]
    assert main([*arguments, "--sweep", grid]) == 1
    assert says in capsys.readouterr().err


def test_the_engine_answers_as_peft_does(
    trained: Path, dataset: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(trained), "--dataset", str(dataset), "--checkpoint", str(tiny_checkpoint)]
    assert verify_main([*arguments, "--dtype", "fp16"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["fp16"]
    assert result["num_examples"] == 8
    assert result["num_equal"] + result["num_ties"] == 8
    assert result["engine_exact"] == result["peft_exact"]


def test_an_engine_with_another_adapter_is_told_apart(
    trained: Path, dataset: Path, tiny_checkpoint: Path, make_adapter: MakeAdapter
) -> None:
    from compllm.build_scripts.training.agreement import by_engine, by_peft, compare

    modules = ("q_proj", "v_proj", "down_proj")
    other = make_adapter(tiny_checkpoint, "other", modules=modules, scale=2.0)
    examples, _ = load_examples(
        [dataset], "validation", Tokenizer.from_dir(tiny_checkpoint), max_tokens=192
    )
    engine = make_engine(tiny_checkpoint, other.parent / "engine", "fp16", {"other": other})
    expected = by_peft(tiny_checkpoint, trained, examples, 4)
    assert compare(by_engine(engine, examples, 4), expected, examples).num_apart > 0


def test_a_folder_without_data_is_one_line(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dataset", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--checkpoint", str(tiny_checkpoint)]) == 1
    assert "train.jsonl" in capsys.readouterr().err
