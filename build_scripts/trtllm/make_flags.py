"""Make flags.json, our list of the flags that TensorRT-LLM's tools take.

    python build_scripts/trtllm/make_flags.py DIR

DIR holds the three files read off upstream's argument parsers, each naming the source file and the
commit: trtllm_build_flags.json, convert_checkpoint_llama_flags.json (with the differences of the
Qwen script and with quantize.py) and hf_lora_convert_flags.json. Run again for another release.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("flags.json")
_KEPT = ("type", "choices", "nargs", "aliases", "required", "deprecated")
_SHAPE_GROUP = "shape (no-weights mode)"


def make_flags(directory: Path) -> dict[str, Any]:
    """The content of flags.json."""
    build = _read(directory / "trtllm_build_flags.json")
    llama = _read(directory / "convert_checkpoint_llama_flags.json")
    lora = _read(directory / "hf_lora_convert_flags.json")
    qwen, quantize = llama["qwen_differences"], llama["quantize_py"]
    return {
        "origin": {
            "made_by": "build_scripts/trtllm/make_flags.py",
            "version": build["version"],
            "repository": "NVIDIA/TensorRT-LLM",
            "note": "read off the argument parsers of the 1.2 development line, file by file; "
            "not a byte-exact dump of the v1.2.1 tag",
        },
        "tools": {
            "build": _tool("trtllm-build", build["source"], build["flags"]),
            "convert_llama": _tool(llama["tool"], llama["source"], llama["flags"]),
            "convert_qwen": _tool(
                "examples/models/core/qwen/convert_checkpoint.py",
                qwen["source"],
                _qwen_flags(llama["flags"], qwen),
            ),
            "quantize": _tool(quantize["tool"], quantize["source"], quantize["flags"]),
            "lora_convert": _tool(lora["tool"], lora["source"], lora["flags"]),
        },
        "lora_modules": lora["hf_module_to_trtllm_module"],
        "lora_module_ids": lora["module_ids"],
    }


def _qwen_flags(llama: Iterable[Mapping[str, Any]], qwen: Mapping[str, Any]) -> list[Any]:
    """Upstream's Qwen script is listed by how it differs from the Llama one."""
    absent = set(qwen["absent_vs_llama"])
    changes: dict[str, dict[str, Any]] = {
        "--weight_only_precision": {"choices": qwen["weight_only_precision_choices"]},
        **{name: {"required": True} for name in qwen["required"]},
    }
    return [
        {**flag, **changes.get(flag["name"], {})}
        for flag in llama
        if flag["name"] not in absent and flag.get("group") != _SHAPE_GROUP
    ]


def _tool(program: str, source: Any, flags: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    kept = {flag["name"]: {key: flag[key] for key in _KEPT if key in flag} for flag in flags}
    return {"program": program, "source": source, "flags": kept}


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description="Make flags.json from upstream's flag lists.")
    parser.add_argument("directory", type=Path, metavar="DIR")
    flags = make_flags(parser.parse_args().directory)
    TARGET.write_text(json.dumps(flags, indent=1) + "\n", encoding="utf-8")
    print(f"{TARGET}: {sum(len(tool['flags']) for tool in flags['tools'].values())} flags")
    return 0


if __name__ == "__main__":
    sys.exit(main())
