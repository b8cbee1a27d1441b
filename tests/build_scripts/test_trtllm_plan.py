"""What can be known without TensorRT-LLM is decided, and refused, before anything runs."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import MakeAdapter, rewrite_json
from safetensors.numpy import load_file, save_file
from trtllm_plans import A100, H100, LLAMA_8B, SMOL
from trtllm_tools import write_catalogue

from compllm.build_scripts.trtllm.plan import BuildPlan, make_plan
from compllm.build_scripts.trtllm.rules import check_rules
from compllm.build_scripts.trtllm.settings import (
    EngineSettings,
    default_settings_path,
    load_settings,
)
from compllm.catalogue import load_catalogue
from compllm.errors import ArtefactError
from compllm.formats.adapters import read_peft
from compllm.formats.checkpoint import validate_checkpoint
from compllm.formats.shape import BaseShape

Folders = dict[str, tuple[Path, int]]
Plan = Callable[..., BuildPlan]


@pytest.fixture(scope="module")
def folders(tiny_checkpoint: Path, make_adapter: MakeAdapter) -> Folders:
    shape = validate_checkpoint(tiny_checkpoint)
    wanted = {"planner": (8, ["o_proj"]), "chem": (4, ["q_proj"]), "bio": (2, ["up_proj"])}
    found = {}
    for name, (rank, modules) in wanted.items():
        folder = make_adapter(tiny_checkpoint, name, rank=rank, modules=modules)
        found[name] = (folder, read_peft(folder, shape, name).task_id)
    return found


@pytest.fixture
def plan(tmp_path: Path, tiny_checkpoint: Path, folders: Folders) -> Plan:
    def make(
        engine: str = "",
        more: str = "",
        adapters: Folders | None = None,
        checkpoint: Path | None = None,
        max_rank: int = 0,
        **arguments: Any,
    ) -> BuildPlan:
        path = tmp_path / "experts.toml"
        write_catalogue(path, folders if adapters is None else adapters, "chem", "bio", "other")
        text = default_settings_path().read_text(encoding="utf-8")
        text = text.replace("max_rank = 0", f"max_rank = {max_rank}")
        settings = tmp_path / "gpu.toml"
        settings.write_text(text.replace("[engine]\n", f"[engine]\n{engine}\n") + more)
        loaded = load_settings(settings, **arguments)
        return make_plan(load_catalogue(path), loaded, checkpoint or tiny_checkpoint)

    return make


def test_shared_base_serves_every_adapter(plan: Plan) -> None:
    made = plan()
    (engine,) = made.engines
    assert (engine.name, engine.merged, engine.lora is None) == ("tensorrt_llm", None, False)
    assert engine.lora is not None
    assert engine.lora.modules == (
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_dense",
        "mlp_h_to_4h",
        "mlp_gate",
    )
    assert (engine.lora.max_rank, engine.lora.num_adapters, engine.lora.gpu_adapters) == (8, 3, 3)
    assert [each.adapter.name for each in made.adapters] == ["planner", "chem", "bio"]


def test_engine_per_expert_merges_what_an_expert_has(plan: Plan) -> None:
    made = plan(topology="per-expert", num_gpus=2)
    assert [(each.name, each.devices) for each in made.engines] == [
        ("tensorrt_llm", (0,)),
        ("tensorrt_llm_chem", (1,)),
        ("tensorrt_llm_bio", (0,)),
    ]
    assert [each.merged.adapter.name for each in made.engines if each.merged] == ["chem", "bio"]
    # The generator's adapter is no expert's: the base's engine keeps serving it.
    assert [each.adapter.name for each in made.adapters] == ["planner"]
    assert made.engines[0].lora is not None
    assert made.engines[0].lora.modules == ("attn_dense",)
    assert made.engines[1].lora is None
    # Two share the first GPU, one has the second: less KV for each of the two.
    assert made.engines[0].share.kv_tokens < made.engines[1].share.kv_tokens


def quantisations(made: BuildPlan) -> list[str]:
    return [engine.settings.quantisation for engine in made.engines]


def test_an_experts_own_engine_is_fp8_where_the_gpu_has_it(plan: Plan) -> None:
    assert quantisations(plan(topology="per-expert")) == ["none", "fp8", "fp8"]  # LoRA: not
    assert quantisations(plan(topology="per-expert", gpu="l4")) == ["int8", "fp8", "fp8"]
    assert quantisations(plan(topology="per-expert", gpu="a100")) == ["none"] * 3
    assert quantisations(plan()) == ["none"]
    written = plan(topology="per-expert", engine="quantisation = 'none'")
    assert quantisations(written) == ["none"] * 3
    with pytest.raises(ArtefactError, match=r"calib_dataset = '/not/here' is not a directory"):
        plan(topology="per-expert", engine="calib_dataset = '/not/here'")


def test_the_weights_of_an_fp8_engine_are_counted_as_such(plan: Plan) -> None:
    default = plan(topology="per-expert", num_gpus=3).engines[1]
    written = plan(topology="per-expert", num_gpus=3, engine="quantisation = 'none'").engines[1]
    assert default.share.memory.weights < written.share.memory.weights


def test_no_adapters_build_an_engine_without_the_plugin(plan: Plan) -> None:
    made = plan(adapters={})
    assert (made.engines[0].lora, made.adapters) == (None, ())


def test_qwen3_is_planned_and_what_the_engines_do_not_convert_is_refused(
    plan: Plan, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    qwen = tmp_path / tiny_checkpoint.name
    shutil.copytree(tiny_checkpoint, qwen)
    changes = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    rewrite_json(qwen / "config.json", changes)
    weights = load_file(qwen / "model.safetensors")
    config = json.loads((qwen / "config.json").read_text(encoding="utf-8"))
    norm = np.ones(config["hidden_size"] // config["num_attention_heads"], np.float32)
    for layer, name in itertools.product(range(config["num_hidden_layers"]), ("q_norm", "k_norm")):
        weights[f"model.layers.{layer}.self_attn.{name}.weight"] = norm
    save_file(weights, qwen / "model.safetensors")
    made = plan(checkpoint=qwen)
    assert made.base.is_qwen
    validate_checkpoint(qwen)
    changes = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    rewrite_json(qwen / "config.json", changes | {"sliding_window": None})
    with pytest.raises(ArtefactError, match=r"supported are LlamaForCausalLM, .*Qwen3ForCausalLM$"):
        plan(checkpoint=qwen)


def test_default_length_bends_to_the_model_and_a_written_one_does_not(plan: Plan) -> None:
    assert plan().engines[0].settings.max_seq_len == 512
    with pytest.raises(ArtefactError, match=r"max_seq_len = 4096: tiny-llama was made for 512"):
        plan(engine="max_seq_len = 4096")


def test_full_fine_tune_is_an_engine_of_its_own(plan: Plan, tiny_checkpoint: Path) -> None:
    more = f"[experts.other]\ncheckpoint = '{tiny_checkpoint}'\n"
    made = plan(topology="per-expert", more=more)
    assert [engine.expert for engine in made.engines] == ["base", "chem", "bio", "other"]
    assert made.engines[3].merged is None
    with pytest.raises(ArtefactError, match="needs topology = 'per-expert'"):
        plan(more=more)
    with pytest.raises(
        ArtefactError, match=r"experts\.physics is no expert .*: there are bio, chem"
    ):
        plan(topology="per-expert", more=more.replace("other", "physics"))


def test_fine_tune_with_other_tokens_is_refused(
    plan: Plan, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tuned"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = tokenizer["added_tokens"]
    added[-1] = {**added[-1], "lstrip": not added[-1]["lstrip"]}
    rewrite_json(folder / "tokenizer.json", {"added_tokens": added})
    with pytest.raises(
        ArtefactError, match=r"expert bio: the tokenizer of .*tuned is not the base"
    ):
        plan(topology="per-expert", more=f"[experts.bio]\ncheckpoint = '{folder}'\n")


def broken(folders: Folders, tmp_path: Path, name: str = "chem") -> tuple[Folders, Path]:
    """The adapters, one of them a copy that may be damaged."""
    folder = Path(shutil.copytree(folders[name][0], tmp_path / "broken"))
    return {**folders, name: (folder, folders[name][1])}, folder


def refusal(plan: Plan, **arguments: Any) -> str:
    with pytest.raises(ArtefactError) as caught:
        plan(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_missing_adapter_file_is_named(
    plan: Plan, folders: Folders, tmp_path: Path, name: str
) -> None:
    adapters, folder = broken(folders, tmp_path)
    (folder / name).unlink()
    said = refusal(plan, adapters=adapters)
    assert said == f"adapter chem: {folder / name} is missing"
    shutil.rmtree(folder)
    assert refusal(plan, adapters=adapters) == f"adapter chem: {folder} is not a directory"


def test_wrong_ranks_are_named(plan: Plan, folders: Folders, tmp_path: Path) -> None:
    said = refusal(plan, max_rank=4)
    assert said.startswith("adapter planner has rank 8, lora.max_rank is 4: raise it")
    room = plan(max_rank=16).engines[0].lora
    assert room is not None
    assert room.max_rank == 16
    adapters, folder = broken(folders, tmp_path)
    rewrite_json(folder / "adapter_config.json", {"r": 16})
    assert "its rank is 4, the config says 16" in refusal(plan, adapters=adapters)


def test_adapter_of_another_base_is_refused(
    plan: Plan, folders: Folders, tmp_path: Path, base_dir: Path
) -> None:
    adapters, folder = broken(folders, tmp_path)
    rewrite_json(folder / "adapter_config.json", {"base_model_name_or_path": "x/llama-70b"})
    assert "made for base llama-70b, this one is tiny-llama" in refusal(plan, adapters=adapters)
    rewrite_json(folder / "adapter_config.json", {"base_model_name_or_path": ""})
    only = {"chem": adapters["chem"]}
    assert "do not fit the base" in refusal(plan, adapters=only, checkpoint=base_dir)


def test_changed_adapter_is_told_by_its_id(plan: Plan, folders: Folders) -> None:
    adapters = {**folders, "chem": (folders["bio"][0], folders["chem"][1])}
    said = refusal(plan, adapters=adapters)
    assert said.startswith(f"adapter chem: the catalogue's id is {folders['chem'][1]}, its content")


def test_adapters_ask_for_a_float16_engine(plan: Plan) -> None:
    assert "adapters travel as float16" in refusal(plan, engine="dtype = 'bfloat16'")
    assert plan(engine="dtype = 'bfloat16'", adapters={}).engines[0].settings.dtype == "bfloat16"


def test_missing_calibration_data_is_told_where_it_is_needed(plan: Plan) -> None:
    engine = "calib_dataset = '/nowhere'\n"
    plan(engine=engine)
    said = refusal(plan, engine=engine + "quantisation = 'fp8'")
    assert said.startswith("engine.calib_dataset = '/nowhere' is not a directory")


def test_adapters_ask_for_pages(plan: Plan) -> None:
    engine = "kv_cache_type = 'continuous'\npaged_context_fmha = false"
    assert "adapters mix in an in-flight batch" in refusal(plan, engine=engine)


def test_too_little_memory_is_refused_before_anything_runs(plan: Plan) -> None:
    table = "[gpus.small]\nlabel = 'Small'\ncompute_capability = '9.0'\nmemory_gib = 1.0\n"
    said = refusal(plan, more=table, gpu="small")
    assert said.startswith("the engine cannot fit Small: 1.")
    assert said.endswith("set gpu = 'h100', or gpu = 'a100', or gpu = 'a100-40', or gpu = 'l4'")


@pytest.mark.parametrize(
    ("shape", "settings", "said"),
    [
        (LLAMA_8B, {"tp": 2, "pp": 2}, "engine.tp 2 x engine.pp 2 needs 4 GPUs, num_gpus is 2"),
        (SMOL, {"tp": 2}, "engine.tp = 2 does not divide the 9 attention heads"),
        (BaseShape(2, 12, 24, 12, 4, 1, 9), {"tp": 6}, "4 key-value heads cannot be shared out"),
        (BaseShape(3, 64, 128, 4, 4, 16, 9), {"pp": 2}, "engine.pp = 2 does not divide the 3"),
        (SMOL, {"quantisation": "int4_awq"}, "a hidden size that is a multiple of 128, it is 576"),
        (LLAMA_8B, {"tokens_per_block": 48}, "tokens_per_block = 48: expected a power of two"),
        (LLAMA_8B, {"kv_cache_dtype": "int8"}, "'int8' goes without paged_context_fmha"),
        (LLAMA_8B, {"kv_cache_dtype": "fp8"}, "needs quantisation 'fp8' too"),
        (LLAMA_8B, {"kv_cache_type": "continuous"}, "goes without paged_context_fmha"),
    ],
)
def test_settings_that_cannot_be_built_are_named(
    shape: BaseShape, settings: dict[str, Any], said: str
) -> None:
    num_gpus = 8 if settings.get("tp") == 6 else 2
    with pytest.raises(ArtefactError) as caught:
        check_rules(shape, EngineSettings(**settings), H100, num_gpus)
    assert said in str(caught.value)


def test_fp8_needs_a_gpu_that_has_it() -> None:
    both = EngineSettings(quantisation="fp8", kv_cache_dtype="fp8")
    check_rules(LLAMA_8B, both, H100, 1)
    with pytest.raises(ArtefactError, match=r"NVIDIA A100 80GB \(compute capability 8\.0\) has no"):
        check_rules(LLAMA_8B, both, A100, 1)
