"""Merge a LoRA adapter into its base: one Hugging Face checkpoint, for an engine per expert.

    python build_scripts/trtllm/merge.py --base DIR --adapter DIR --out DIR [--dtype float16]

PEFT merges in float32 and the result is rounded once. A step of build_trtllm.py; `--out` must be an
empty directory, the caller's to rename into place.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from compllm.build_scripts.manifest import copied_files, weights_sha256
from compllm.build_scripts.staging import run_script, saving
from compllm.build_scripts.trtllm.legacy_form import CONVERTIBLE, write_configs
from compllm.errors import ArtefactError
from compllm.formats.adapters import WEIGHTS_FILE, read_peft, unwrapped
from compllm.formats.checkpoint import validate_checkpoint

DTYPES = ("float16", "bfloat16", "float32")


def merge(
    base: Path, adapter: Path, out: Path, dtype: str = "float16", *, is_same_base: bool = False
) -> None:
    """Write base + adapter to `out`. Raises ArtefactError when the two do not fit each other.

    is_same_base: take the adapter as made for `base`, whatever name it records.
    """
    # In our words, before PEFT in its own.
    shape = replace(validate_checkpoint(base, CONVERTIBLE), sha256=weights_sha256(base))
    read_peft(adapter, shape, is_same_base=is_same_base)
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    try:
        with TemporaryDirectory() as plain:
            _write_unwrapped(adapter, Path(plain))
            merged = PeftModel.from_pretrained(model, plain).merge_and_unload(safe_merge=True)
    except ValueError as error:  # safe_merge found a number that is none
        raise ArtefactError(f"adapter {adapter} cannot be merged: {error}") from error
    merged.to(getattr(torch, dtype))
    with saving("merging the adapter", out):
        merged.save_pretrained(out)
    for name in copied_files(base):
        if name not in ("config.json", "tokenizer_config.json"):
            shutil.copyfile(base / name, out / name)
    # The base's, since what an older transformers saved has lost the rotary base of a newer one.
    write_configs(base, out, torch_dtype=dtype)


def _write_unwrapped(adapter: Path, directory: Path) -> None:
    """The adapter with the names that PEFT knows: it leaves out any other without an error."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / WEIGHTS_FILE)
    plain = {unwrapped(name).replace(".default.", "."): value for name, value in tensors.items()}
    save_file(plain, directory / WEIGHTS_FILE)
    shutil.copyfile(adapter / "adapter_config.json", directory / "adapter_config.json")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Merge a LoRA adapter into its base.")
    for name in ("base", "adapter", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument(
        "--same-base",
        action="store_true",
        help="the adapter is made for this base, whatever name it records",
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        merge(
            options.base,
            options.adapter,
            options.out,
            options.dtype,
            is_same_base=options.same_base,
        )

    return run_script(work)


if __name__ == "__main__":
    sys.exit(main())
