"""Check that an adapter answers through the embedded engine as it does through PEFT.

    python build_scripts/verify_lora.py engines/adapters/chemistry --dataset DIR/chemistry

Builds an engine of the base with this adapter alone (fp16, then int8, as it is served), decodes
examples of the data set greedily by it and by transformers + PEFT, and prints how many are the same
token by token, how many answer as the data say. Ends with status 1 when the fp16 engine parts from
PEFT elsewhere than at a tie. After train_lora.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from compllm.backends.tokenizer import Tokenizer
from compllm.build_scripts.fetch_base import ensure_base
from compllm.build_scripts.staging import run_script
from compllm.build_scripts.training.examples import SPLITS, load_examples
from compllm.errors import ArtefactError
from compllm.prompts import TEMPLATES


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare the embedded engine with PEFT.")
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="a PEFT directory")
    parser.add_argument("--dataset", type=Path, required=True, metavar="DIR")
    parser.add_argument("--split", choices=SPLITS, default="validation")
    parser.add_argument("--examples", type=int, default=64, metavar="N")
    parser.add_argument("--dtype", action="append", choices=("fp16", "int8"), help="default: both")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: the fetched base")
    parser.add_argument("--template", choices=sorted(TEMPLATES), default="chatml")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    def work() -> None:
        import numpy as np

        from compllm.build_scripts.training.agreement import verify

        checkpoint = options.checkpoint or ensure_base()
        examples, _ = load_examples(
            [options.dataset],
            options.split,
            Tokenizer.from_dir(checkpoint),
            max_tokens=1024,
            template=TEMPLATES[options.template],
        )
        order = np.random.default_rng(options.seed).permutation(len(examples))
        chosen = [examples[int(place)] for place in order[: options.examples]]
        found = verify(checkpoint, options.adapter, chosen, options.dtype or ("fp16", "int8"))
        for dtype, each in found.items():
            print(
                f"{dtype}: {each.num_equal}/{each.num_examples} as PEFT, {each.num_ties} part at "
                f"a tie; exact {each.engine_exact:.1%}, PEFT {each.peft_exact:.1%}"
            )
        print(json.dumps({dtype: dataclasses.asdict(each) for dtype, each in found.items()}))
        if "fp16" in found and found["fp16"].num_apart:
            raise ArtefactError(
                f"{found['fp16'].num_apart} of {len(chosen)} examples part from PEFT where it was "
                f"decided: the engine does not serve {options.adapter} as it was trained"
            )

    return run_script(work)


if __name__ == "__main__":
    sys.exit(main())
