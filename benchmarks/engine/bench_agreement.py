"""Are the embedded engine's tokens those of transformers + PEFT, alone and in any mix?

    python benchmarks/engine/bench_agreement.py [--quick]

Builds an fp16 and an int8 engine of the base with six random adapters of different ranks and
modules, decodes the same prompts greedily on the base and on each adapter, and compares token by
token: fp16 engines (both adapter forms) with transformers + PEFT in float32 on the same
half-precision weights, alone and all in one mixed batch; the int8 engine with itself, alone
against mixed, and with float32. Where tokens part, the gap between the reference's two best
logits at that place is recorded: a tie of summation order has a tiny one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.report import Report, add_arguments  # noqa: E402

if TYPE_CHECKING:
    from engines import Reference

    from compllm.embedded.executor import Executor

    Prompts = Sequence[Sequence[int]]
    Case = tuple[str, int]  # adapter or "base", place of the prompt
    Expected = Mapping[str, Sequence[Reference]]  # by adapter, of each prompt

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# name -> (rank, modules)
ADAPTERS = {
    "r8-all": (8, MODULES),
    "r2-qv": (2, ("q_proj", "v_proj")),
    "r16-mlp": (16, ("gate_proj", "up_proj", "down_proj")),
    "r5-odd": (5, ("k_proj", "o_proj", "down_proj")),
    "r32-o": (32, ("o_proj",)),
    "r4-all": (4, MODULES),
}
QUESTIONS = (
    "What is the capital of France?",
    "Name three noble gases.",
    "How does a plant make sugar from light?",
    "What is 12 times 7?",
    "Write one sentence about the sea.",
    "Why is the sky blue?",
    "List the planets of the solar system in order, with one fact about each of them.",
    "Who wrote Hamlet, and when?",
)
TIE = 1e-2  # of logits that span about 30


def make_adapter(checkpoint: Path, out: Path, rank: int, modules: Sequence[str], seed: int) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=list(modules), task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            # Half-precision values, as in every adapter that is shipped; strong enough to matter.
            values = torch.randn_like(parameter) * (0.02 if "lora_A" in name else 0.03)
            parameter.data = values.half().float()
    model.save_pretrained(str(out))
    return out


def decoded(
    engine: Executor, prompts: Prompts, cases: Sequence[Case], num_new: int, *, is_mixed: bool
) -> list[list[int]]:
    """Tokens of every case, in one batch or one request after another."""
    from engines import generate

    from compllm.embedded.request import EngineRequest

    requests = [
        EngineRequest(tuple(prompts[i]), num_new, task_id=engine.adapter_names.get(name))
        for name, i in cases
    ]
    if is_mixed:
        return [result.token_ids for result in generate(engine, requests)]
    return [generate(engine, [request])[0].token_ids for request in requests]


def compare(
    report: Report,
    row: str,
    cases: Sequence[Case],
    tokens: Sequence[list[int]],
    others: Sequence[list[int]],
    expected: Expected,
) -> None:
    """Add how many sequences are equal, and where each other one parts."""
    equal, ties = 0, 0
    for ours, theirs, (name, i) in zip(tokens, others, cases, strict=True):
        reference = expected[name][i]
        place = replace(reference, token_ids=theirs).parting(ours)
        equal += place is None
        if place is not None:
            margin = reference.margins[place]
            ties += margin < TIE
            report.add(
                "where they part",
                comparison=row,
                adapter=name,
                prompt=i,
                token=place,
                reference_gap=margin,
            )
    report.add(
        "agreement",
        comparison=row,
        sequences=len(cases),
        equal=equal,
        rate=equal / len(cases),
        parted_at_a_tie=ties,
    )


def compare_engines(
    report: Report, scratch: Path, adapters: Mapping[str, Path], prompts: Prompts, num_new: int
) -> None:
    """Each engine in both adapter forms against the reference, and against itself."""
    from engines import make_engine, reference

    from compllm import paths
    from compllm.embedded.executor import Executor
    from compllm.embedded.options import ExecutorOptions

    checkpoint = paths.base_dir()
    expected: Expected = {
        name: reference(checkpoint, path, prompts, num_new)
        for name, path in {"base": None, **adapters}.items()
    }
    cases = [(name, i) for i in range(len(prompts)) for name in expected]
    floats = [expected[name][i].token_ids for name, i in cases]
    options = ExecutorOptions(is_prefix_reused=False, max_batch_size=64, max_adapters=8)
    for dtype in ("fp16", "int8"):
        engine_dir = make_engine(checkpoint, scratch / f"engine-{dtype}", dtype, adapters)
        for form in ("op", "mask"):
            engine = Executor(engine_dir, replace(options, adapter_form=form))
            alone = decoded(engine, prompts, cases, num_new, is_mixed=False)
            mixed = decoded(engine, prompts, cases, num_new, is_mixed=True)
            engine.close()
            for row, ours, theirs in (
                ("alone, against float32", alone, floats),
                ("mixed, against float32", mixed, floats),
                ("mixed against alone", mixed, alone),
            ):
                compare(report, f"{dtype} {form}, {row}", cases, ours, theirs, expected)


def main(argv: Sequence[str] | None = None) -> int:
    from tokenizers import Tokenizer

    from compllm import paths

    warnings.simplefilter("ignore")  # peft's, about the base it cannot look up
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_arguments(parser)
    parser.add_argument("--new-tokens", type=int, default=20)
    arguments = parser.parse_args(argv)
    num_new = 4 if arguments.quick else arguments.new_tokens
    questions = QUESTIONS[:2] if arguments.quick else QUESTIONS
    chosen = dict(list(ADAPTERS.items())[:2]) if arguments.quick else ADAPTERS
    checkpoint = paths.base_dir()
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    prompts = [
        tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").ids
        for question in questions
    ]
    report = Report("bench_agreement", arguments, ("openvino", "torch", "transformers", "peft"))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        adapters = {
            name: make_adapter(checkpoint, scratch / name, rank, modules, arguments.seed + place)
            for place, (name, (rank, modules)) in enumerate(chosen.items())
        }
        compare_engines(report, scratch, adapters, prompts, num_new)
    report.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
