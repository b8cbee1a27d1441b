"""Every flag of every command is one that upstream's tool takes, with a value it takes."""

from __future__ import annotations

import ast
import json
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtllm_plans import QKV, planned_engine

from compllm.build_scripts.trtllm import flags
from compllm.build_scripts.trtllm.commands import (
    build_command,
    convert_command,
    lora_command,
    merge_command,
)
from compllm.build_scripts.trtllm.make_flags import make_flags
from compllm.build_scripts.trtllm.memory import LoraNeed
from compllm.build_scripts.trtllm.plan import PlannedEngine
from compllm.build_scripts.trtllm.rules import warnings
from compllm.build_scripts.trtllm.settings import EngineSettings, KvDtype, Quantisation
from compllm.errors import ArtefactError

UPSTREAM = Path(__file__).parents[3] / "shared" / "trtllm"
HERE, EXAMPLES = Path("/work dir"), Path("/app/examples")

engines = st.builds(
    planned_engine,
    is_qwen=st.booleans(),
    is_merged=st.booleans(),
    lora=st.none() | st.builds(LoraNeed, st.just(QKV), st.integers(1, 512), st.just(3), st.just(3)),
    dtype=st.sampled_from(["float16", "bfloat16"]),
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.sampled_from([1, 2]),
    quantisation=st.sampled_from(typing.get_args(Quantisation)),
    kv_cache_dtype=st.sampled_from(typing.get_args(KvDtype)),
    kv_cache_type=st.sampled_from(["paged", "continuous"]),
    paged_context_fmha=st.booleans(),
    tokens_per_block=st.sampled_from([16, 32, 64]),
    max_batch_size=st.integers(1, 4096),
    max_num_tokens=st.integers(64, 65536),
    max_seq_len=st.integers(64, 65536),
)


def commands(engine: PlannedEngine) -> dict[str, list[str]]:
    """Tool -> its arguments, without the program."""
    convert = convert_command(engine, HERE, HERE, EXAMPLES)
    lora = lora_command(HERE, HERE, EXAMPLES)
    made = {each.tool: list(each.argv[2:]) for each in (convert, lora)}
    made["build"] = list(build_command(engine, HERE, HERE).argv[1:])
    return made


@given(engines)
def test_every_flag_emitted_is_in_the_lists(engine: PlannedEngine) -> None:
    """Read plainly, beside the parser that `flags.check` is."""
    known = json.loads(flags.FLAGS_FILE.read_text(encoding="utf-8"))["tools"]
    for tool, arguments in commands(engine).items():
        flags.check(tool, arguments)
        for place, argument in enumerate(arguments):
            if not argument.startswith("--"):
                continue
            flag = known[tool]["flags"][argument]
            choices = flag.get("choices")
            if choices and flag["type"] != "flag":
                assert arguments[place + 1] in choices, (argument, arguments[place + 1])
            assert not flag.get("deprecated")


@pytest.mark.skipif(not UPSTREAM.is_dir(), reason="upstream's lists are not beside the checkout")
def test_our_lists_are_those_made_from_upstream() -> None:
    made = make_flags(UPSTREAM)
    assert json.loads(flags.FLAGS_FILE.read_text(encoding="utf-8")) == made
    counts = {name: len(tool["flags"]) for name, tool in made["tools"].items()}
    assert (counts["build"], counts["convert_llama"]) == (67, 51)


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("build", ["--checkpoint_dir", "x", "--use_turbo"], "--use_turbo"),
        ("build", ["--max_batch", "8"], "--max_batch"),  # no abbreviations
        ("build", ["--max_batch_size", "many"], "invalid int value"),
        ("build", ["--kv_cache_type", "PAGED"], "invalid choice"),
        ("build", ["--lora_target_modules", "q_proj"], "invalid choice"),
        ("build", ["--paged_kv_cache", "enable"], "--paged_kv_cache is deprecated"),
        ("convert_llama", ["--qformat", "fp8"], "--qformat"),
        ("convert_llama", ["--dtype"], "expected one argument"),
        ("convert_qwen", ["--model_dir", "x", "--use_fp8"], "--use_fp8"),
        ("convert_qwen", ["--dtype", "float16"], "--model_dir"),
        ("quantize", ["--qformat", "fp16"], "invalid choice"),
        ("lora_convert", ["-i", "x"], "--out-dir"),
    ],
)
def test_invented_flag_or_value_is_refused(tool: str, arguments: list[str], said: str) -> None:
    with pytest.raises(ArtefactError) as caught:
        flags.check(tool, arguments)
    assert said in str(caught.value)


def test_no_other_module_makes_flags() -> None:
    """A flag that `commands.py` does not make is one that no test checks."""
    folder = flags.FLAGS_FILE.parent
    ours = {"merge.py", "make_flags.py"}  # they parse their own arguments
    # Upstream's flags stand in underscores, ours and nvidia-smi's in hyphens.
    for path in folder.glob("*.py"):
        if path.name in ours | {"commands.py"}:
            continue
        texts = [
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert not [
            text for text in texts if text.startswith("--") and "_" in text.partition("=")[0]
        ], path


def test_calibrated_formats_go_through_quantize() -> None:
    for settings, tool in (
        ({}, "convert_llama"),
        ({"quantisation": "int8"}, "convert_llama"),
        ({"quantisation": "fp8"}, "quantize"),
        ({"quantisation": "int4_awq"}, "quantize"),
        ({"kv_cache_dtype": "int8"}, "quantize"),
    ):
        made = convert_command(planned_engine(**settings), HERE, HERE, EXAMPLES)
        assert made.tool == tool
    made = convert_command(planned_engine(is_qwen=True), HERE, HERE, EXAMPLES)
    assert made.argv[1] == "/app/examples/models/core/qwen/convert_checkpoint.py"


def test_lora_engine_is_built_with_plugin_modules_and_rank() -> None:
    command = str(build_command(planned_engine(lora=LoraNeed(QKV, 16, 3, 3)), HERE, HERE))
    assert "--lora_plugin auto --max_lora_rank 16 " in command
    assert command.endswith("--lora_target_modules attn_q attn_k attn_v")
    assert "lora" not in str(build_command(planned_engine(), HERE, HERE))


def test_engines_have_kernels_for_small_and_for_large_batches() -> None:
    assert "--multiple_profiles enable" in str(build_command(planned_engine(), HERE, HERE))
    off = planned_engine(multiple_profiles=False)
    assert "--multiple_profiles disable" in str(build_command(off, HERE, HERE))


def test_tensor_parallel_adapters_are_warned_of() -> None:
    (told,) = warnings(EngineSettings(tp=2), has_adapters=True)
    assert "TensorRT-LLM#2634" in told
    assert "topology = 'per-expert'" in told
    assert warnings(EngineSettings(tp=2), has_adapters=False) == ()
    assert warnings(EngineSettings(), has_adapters=True) == ()


def test_printed_command_can_be_pasted() -> None:
    assert "'/work dir'" in str(merge_command(planned_engine(is_merged=True), HERE, HERE))
