"""The exact commands of a plan. None is made that upstream's flag lists do not take.

FP8, AWQ and a quantised KV cache need calibration: quantize.py. Everything else goes through the
convert_checkpoint.py of the model's family. Both write what trtllm-build reads.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compllm.build_scripts.trtllm import flags
from compllm.build_scripts.trtllm.image import script_path
from compllm.build_scripts.trtllm.plan import PlannedEngine
from compllm.build_scripts.trtllm.rules import is_calibrated

_QFORMATS = {
    "none": "full_prec",
    "fp8": "fp8",
    "int8": "int8_wo",
    "int4": "int4_wo",
    "int4_awq": "int4_awq",
}


@dataclass(frozen=True, slots=True)
class Command:
    """One process of the build."""

    tool: str  # in flags.json, or "merge", ours
    argv: tuple[str, ...]

    @property
    def label(self) -> str:
        """Its name for people."""
        return "merge.py" if self.tool == "merge" else Path(flags.program(self.tool)).name

    def __str__(self) -> str:
        return shlex.join(self.argv)


def merge_command(engine: PlannedEngine, adapter: Path, out: Path) -> Command:
    """Base + adapter -> a Hugging Face checkpoint."""
    script = Path(__file__).with_name("merge.py")
    paths = ("--base", str(engine.source.directory), "--adapter", str(adapter), "--out", str(out))
    dtype = ("--dtype", engine.settings.dtype)
    # The plan has checked the adapter, as the catalogue asks for it.
    return Command("merge", (sys.executable, str(script), *paths, *dtype, "--same-base"))


def convert_command(engine: PlannedEngine, checkpoint: Path, out: Path, examples: Path) -> Command:
    """Hugging Face checkpoint -> TensorRT-LLM checkpoint, one file a rank."""
    settings = engine.settings
    common = ["--model_dir", str(checkpoint), "--output_dir", str(out), "--dtype", settings.dtype]
    common += ["--tp_size", str(settings.tp), "--pp_size", str(settings.pp)]
    kv = settings.kv_cache_dtype
    if is_calibrated(settings):
        common += ["--qformat", _QFORMATS[settings.quantisation]]
        common += ["--calib_dataset", settings.calib_dataset]
        common += ["--calib_size", str(settings.calib_size)]
        if kv != "auto":
            common += ["--kv_cache_dtype", kv]
        if settings.quantisation == "int4_awq":
            common += ["--awq_block_size", "128"]
        return _script("quantize", common, examples)
    if settings.quantisation != "none":
        common += ["--use_weight_only", "--weight_only_precision", settings.quantisation]
    return _script("convert_qwen" if engine.source.is_qwen else "convert_llama", common, examples)


def build_command(engine: PlannedEngine, checkpoint: Path, out: Path) -> Command:
    """TensorRT-LLM checkpoint -> engine."""
    settings = engine.settings
    arguments = [
        *("--checkpoint_dir", str(checkpoint)),
        *("--output_dir", str(out)),
        # FP8 products are faster in TensorRT itself.
        *("--gemm_plugin", "disable" if settings.quantisation == "fp8" else "auto"),
        *("--gpt_attention_plugin", "auto"),
        *("--remove_input_padding", "enable"),
        *("--kv_cache_type", settings.kv_cache_type),
        *("--use_paged_context_fmha", "enable" if settings.paged_context_fmha else "disable"),
        *("--tokens_per_block", str(settings.tokens_per_block)),
        *("--max_batch_size", str(settings.max_batch_size)),
        *("--max_num_tokens", str(settings.max_num_tokens)),
        *("--max_seq_len", str(settings.max_seq_len)),
        *("--max_beam_width", "1"),
        *("--multiple_profiles", "enable" if settings.multiple_profiles else "disable"),
        *("--workers", str(settings.world_size)),
    ]
    if engine.lora is not None:
        arguments += ["--lora_plugin", "auto", "--max_lora_rank", str(engine.lora.max_rank)]
        arguments += ["--lora_target_modules", *engine.lora.modules]
    flags.check("build", arguments)
    return Command("build", (flags.program("build"), *arguments))


def lora_command(prepared: Path, out: Path, examples: Path) -> Command:
    """A prepared PEFT directory -> the two arrays that a request carries."""
    arguments = ["--in-file", str(prepared), "--out-dir", str(out), "--storage-type", "float16"]
    return _script("lora_convert", arguments, examples)


def _script(tool: str, arguments: Sequence[str], examples: Path) -> Command:
    flags.check(tool, arguments)
    return Command(tool, ("python3", str(script_path(tool, examples)), *arguments))
