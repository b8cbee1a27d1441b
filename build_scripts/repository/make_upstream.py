"""Make upstream.json, our list of what TensorRT-LLM's core Triton model declares.

    python build_scripts/repository/make_upstream.py FILE

FILE is the extract of upstream's config.pbtxt files (triton_models.json), which names the source
file and the commit of each. Run again for another release.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("upstream.json")
_MODEL = ("inflight_batcher_llm", "tensorrt_llm")
_KEPT = (
    "source",
    "backend",
    "max_batch_size",
    "decoupled",
    "dynamic_batching",
    "instance_group",
    "parameter_templates",
)


def make_upstream(file: Path) -> dict[str, Any]:
    """The content of upstream.json."""
    extract = json.loads(file.read_text(encoding="utf-8"))
    model = extract["repositories"][_MODEL[0]][_MODEL[1]]
    return {
        "origin": {
            "made_by": "build_scripts/repository/make_upstream.py",
            "version": extract["version"],
            "repository": "NVIDIA/TensorRT-LLM",
            "note": "extracted from upstream's config.pbtxt of the 1.2 development line; not a "
            "byte-exact dump of the v1.2.1 tag. Dims are without the batch dimension, ${...} are "
            "upstream's placeholders.",
        },
        **{key: model[key] for key in _KEPT},
        "inputs": model["inputs"],
        "outputs": model["outputs"],
    }


def render(content: dict[str, Any]) -> str:
    """As it is written: a tensor a line, so that a change of upstream's shows as a line."""
    text = json.dumps({**content, "inputs": "@inputs", "outputs": "@outputs"}, indent=1)
    for key in ("inputs", "outputs"):
        lines = ",\n  ".join(json.dumps(tensor) for tensor in content[key])
        text = text.replace(f'"@{key}"', f"[\n  {lines}\n ]")
    return text + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Make upstream.json from upstream's own files.")
    parser.add_argument("file", type=Path, metavar="FILE")
    content = make_upstream(parser.parse_args().file)
    TARGET.write_text(render(content), encoding="utf-8")
    print(f"{TARGET}: {len(content['inputs'])} inputs, {len(content['outputs'])} outputs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
