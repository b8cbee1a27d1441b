"""The C++ operations against OpenVINO's own, and one instruction set against another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from engines import make_engine, random_prompts
from helpers import MakeAdapter
from safetensors.numpy import load_file, save_file

from compllm.embedded.model import Weights
from compllm.embedded.runner import DECODE_SIZES, AdapterForm, Runner, Step
from compllm.formats.manifest import Manifest

# Largest difference of a logit, over the standard deviation of all. Measured are 4e-6 without an
# adapter and 4e-3 with one, whose factors the operations hold in half precision.
TOLERANCE, ADAPTER_TOLERANCE = 5e-5, 1e-2
FORMS: tuple[AdapterForm, ...] = ("op", "mask")
PROMPTS = random_prompts(40000, 4, seed=5, low=40, high=60)


@pytest.fixture(scope="module", params=["fp16", "int8"])
def engine_dir(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Path,
    make_adapter: MakeAdapter,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Two adapters of different ranks and modules."""
    adapters = {
        "narrow": make_adapter(tiny_checkpoint, "narrow", rank=3, modules=("q_proj", "up_proj")),
        "wide": make_adapter(tiny_checkpoint, "wide", rank=16, seed=1, scale=0.5),
    }
    out = tmp_path_factory.mktemp("engine") / request.param
    return make_engine(tiny_checkpoint, out, request.param, adapters)


def runner(
    engine_dir: Path,
    form: AdapterForm,
    kv_precision: str = "f32",
    decode_sizes: Sequence[int] = DECODE_SIZES,
) -> Runner:
    weights = Weights.load(engine_dir)
    made = Runner(
        weights,
        num_blocks=16,
        kv_precision=kv_precision,
        num_slots=2,
        form=form,
        decode_sizes=decode_sizes,
    )
    adapters = Manifest.read(engine_dir).load_adapters(engine_dir, weights.shape)
    made.set_adapters(dict(enumerate(adapters, start=1)))
    return made


def mixed_steps() -> Iterator[Step]:
    """Prefills of three adapters (0 is none), then decodes beside the rest of one prefill and all
    of another."""
    step = Step()
    for place, (length, slot) in enumerate(((40, 1), (33, 0), (10, 2))):
        step.add(PROMPTS[place][:length], 0, slot, [2 * place, 2 * place + 1], is_sampled=True)
    yield step
    step = Step()
    step.add([17], 40, 1, [0, 1], is_sampled=True)
    step.add([18], 33, 0, [2, 3], is_sampled=True)
    step.add(PROMPTS[2][10:37], 10, 2, [4, 5], is_sampled=True)
    step.add(PROMPTS[3][:5], 0, 1, [6], is_sampled=True)
    yield step


def decode_step() -> Step:
    """One new token for each of the sequences of `mixed_steps`."""
    step = Step()
    for place, (past, slot) in enumerate(((41, 1), (34, 0), (37, 2))):
        step.add([20 + place], past, slot, [2 * place, 2 * place + 1], is_sampled=True)
    return step


def test_operations_compute_what_openvinos_graph_does(engine_dir: Path) -> None:
    runners = [runner(engine_dir, form) for form in FORMS]
    assert [each.form for each in runners] == list(FORMS)
    for step in mixed_steps():
        ours, theirs = (each.run(step).copy() for each in runners)
        assert ours.shape == theirs.shape == (len(step.sampled), 49152)
        off = np.abs(ours - theirs).max(axis=1) / theirs.std()
        for sampled, each in zip(step.sampled, off, strict=True):
            assert each < (ADAPTER_TOLERANCE if step.slots[sampled] else TOLERANCE)
    for each in runners:
        each.close()


@pytest.mark.parametrize("kv_precision", ["f32", "f16"])
def test_the_decode_operation_attends_as_openvinos_paged_attention(
    engine_dir: Path, kv_precision: str
) -> None:
    """Sequences on both sides of a block's end, each writing to the cache what the next step
    reads, beside a mixed step of the other model on the same cache."""
    runners = [runner(engine_dir, "op", kv_precision, sizes) for sizes in ((0, 1, 2), ())]
    lengths = (40, 31, 10)
    for made in runners:
        step = Step()
        for place, length in enumerate(lengths):
            step.add(PROMPTS[place][:length], 0, place, [2 * place, 2 * place + 1], is_sampled=True)
        made.run(step)
    pasts = list(lengths)
    for round_number, num in enumerate((3, 1, 2, 3, 3)):
        logits = []
        for made in runners:
            step = Step()
            for place, past in enumerate(pasts[:num]):
                blocks = [2 * place, 2 * place + 1][: past // 32 + 1]
                step.add([17 + past], past, place, blocks, is_sampled=True)
            if round_number == 3:  # no step of decoding alone
                step.add(PROMPTS[3][:5], 0, 1, [6], is_sampled=True)
            logits.append(made.run(step).copy())
        pasts[:num] = [past + 1 for past in pasts[:num]]
        ours, theirs = logits
        assert np.abs(ours - theirs).max() < TOLERANCE * theirs.std()
    for made in runners:
        made.close()


def test_a_scale_is_not_rounded_with_the_factors(
    tiny_checkpoint: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """Half precision holds these factors exactly. With a third folded in, logits were 3e-4 off."""
    adapter = make_adapter(tiny_checkpoint, "third", rank=3, alpha=1, scale=0.5)
    path = adapter / "adapter_model.safetensors"
    save_file({name: each.astype(np.float16) for name, each in load_file(path).items()}, path)
    engine_dir = make_engine(tiny_checkpoint, tmp_path / "engine", "fp16", {"third": adapter})
    made = [runner(engine_dir, form) for form in FORMS]
    step = Step()
    step.add(PROMPTS[0][:40], 0, 1, [0, 1], is_sampled=True)
    ours, theirs = (each.run(step).copy() for each in made)
    assert np.abs(ours - theirs).max() < TOLERANCE * theirs.std()
    for each in made:
        each.close()


_PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
from test_network import decode_step, mixed_steps, runner

made = runner(Path(sys.argv[1]), "op")
steps = [*mixed_steps(), decode_step()]
tokens = [np.argmax(made.run(step), axis=1).tolist() for step in steps]
print(json.dumps([made.table.isa, tokens]))
made.close()
"""


def test_every_instruction_set_gives_the_same_greedy_tokens(engine_dir: Path) -> None:
    """The attention of AVX-512 took heads of 32 numbers at a time: with these of 16 it wrote behind
    its buffer, and the process died of it."""
    found = {}
    for isa in ("generic", "avx2", "avx512", ""):
        modules = os.pathsep.join(map(str, Path(__file__).parents[:2]))
        env = {**os.environ, "COMPLLM_ISA": isa, "PYTHONPATH": modules}
        command = [sys.executable, "-c", _PROGRAM, str(engine_dir)]
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        name, tokens = json.loads(run.stdout)
        found[name] = tokens
    assert "generic" in found
    assert all(tokens == found["generic"] for tokens in found.values())
