"""Examples, packing, the packed forward pass and scoring, against what they stand for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_family
from hypothesis import given, settings
from hypothesis import strategies as st
from path_parts import CATALOGUE, node_reply, plan_reply
from path_parts import settings as path_settings
from torch.nn import functional
from training_data import CHILD, COMPOSITE, PLAN, SUMMARY, facts, write_dataset

from compllm.backends.tokenizer import Tokenizer
from compllm.build_scripts.training.adapter import load_trainable, trainable
from compllm.build_scripts.training.batches import Batches
from compllm.build_scripts.training.examples import Example, load_examples, make_example
from compllm.build_scripts.training.loop import learning_rate
from compllm.build_scripts.training.packed_model import PackedModel
from compllm.build_scripts.training.packing import pack
from compllm.build_scripts.training.scoring import sample, score
from compllm.build_scripts.training.settings import TrainSettings
from compllm.errors import ConfigError
from compllm.pipeline import CompLLM
from compllm.testing import HashingEncoder, ScriptedBackend

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(base_dir: Path) -> Tokenizer:
    return Tokenizer.from_dir(base_dir)


@pytest.fixture(scope="module")
def examples(tokenizer: Tokenizer) -> list[Example]:
    return [make_example(record, tokenizer) for record in (*facts(0), CHILD, PLAN, SUMMARY)]


@pytest.fixture(scope="module")
def peft_model(tiny_checkpoint: Path) -> Any:
    return with_factors(tiny_checkpoint)


def with_factors(checkpoint: Path) -> Any:
    """The model with factors that change something."""
    with torch.random.fork_rng():
        model = load_trainable(checkpoint, TrainSettings(rank=3), CPU)
        for name, factor in trainable(model).items():
            if "lora_B" in name:
                torch.nn.init.normal_(factor, std=0.1)
    return model


# Examples: what serving sends.


async def test_the_ids_of_training_are_those_that_serving_sends(tokenizer: Tokenizer) -> None:
    """One query through the whole path, then each of its requests as a training example."""
    planner, composer = replace(CATALOGUE.adapters[0], id=9), replace(CATALOGUE.adapters[0], id=10)
    catalogue = replace(
        CATALOGUE,
        experts=tuple(replace(expert, system="") for expert in CATALOGUE.experts),
        generator=planner,
        aggregator=composer,
    )
    iron, neon = "What is the atomic number of iron?", "What is the atomic number of neon?"
    total, other = "What is #1 plus #2?", "What is #2 plus 4?"
    plan = f"1 | {iron}\n2 | {neon}\n3 <1,2> | {total}\n4 <2> | {other}"
    backend = ScriptedBackend(
        plan_reply(plan, adapter_id=9),
        node_reply(iron, "26", adapter_id=7),
        node_reply(neon, "10", adapter_id=7),
        node_reply("What is 26 plus 10?", "36", adapter_id=8),
        node_reply("What is 10 plus 4?", "14", adapter_id=8),
        node_reply("Both?", "36; 14", adapter_id=10),
    )
    async with CompLLM(backend, HashingEncoder(), catalogue, path_settings()) as llm:
        assert (await llm.ask("Both?")).text == "36; 14"
    facts = [{"question": iron, "response": "26"}, {"question": neon, "response": "10"}]
    sums = [{"question": total, "response": "36"}, {"question": other, "response": "14"}]
    trained = [
        make_example(record, tokenizer).prompt_ids
        for record in (
            {"question": "Both?", "plan": plan},
            {"question": iron, "parents": [], "answer": "26"},
            {"question": neon, "parents": [], "answer": "10"},
            {"question": other, "parents": facts[1:], "answer": "14"},
            {"question": total, "parents": facts, "answer": "36"},
            {"question": "Both?", "facts": sums, "answer": "36; 14"},
        )
    ]
    sent = [tuple(tokenizer.encode(each.request.prompt)) for each in backend.requests]
    assert sorted(sent) == sorted(trained)


def test_a_composite_question_may_be_answered_in_one_go(tokenizer: Tokenizer) -> None:
    example = make_example(COMPOSITE, tokenizer)
    alone = {"question": COMPOSITE["question"], "answer": "15"}
    assert example.prompt_ids == make_example(alone, tokenizer).prompt_ids
    assert example.kind == "all"


def test_a_response_ends_with_the_token_that_the_engine_stops_on(
    examples: list[Example], tokenizer: Tokenizer
) -> None:
    for example in examples:
        assert example.response_ids[-1] == tokenizer.special.end_id
        assert example.response_ids.count(tokenizer.special.end_id) == 1


def test_a_plan_ends_where_the_guide_lets_it(examples: list[Example], tokenizer: Tokenizer) -> None:
    import re

    from compllm.plan import plan_guide

    text = tokenizer.decode(examples[-2].response_ids)
    assert text == PLAN["plan"].rstrip("\n")  # type: ignore[attr-defined]
    assert re.fullmatch(plan_guide(5).text, text)


def test_a_record_without_an_answer_is_an_error_with_file_and_line(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    data = write_dataset(tmp_path, train=[facts(0)[0], {"question": "What?"}])
    with pytest.raises(ConfigError, match=r"train.jsonl:2: answer is None"):
        load_examples([data], "train", tokenizer, max_tokens=99)


def test_longer_examples_are_left_out_and_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_dataset(tmp_path, train=[*facts(0), PLAN])
    examples, num_long = load_examples([data], "train", tokenizer, max_tokens=40)
    assert (len(examples), num_long) == (8, 1)


# Batches.


def test_every_epoch_sees_every_example_once(examples: list[Example]) -> None:
    batches = Batches(examples, 4, seed=3)
    seen = [example.id for step in range(11) for example in batches[step]]
    for epoch in range(4):
        assert len(set(seen[epoch * 11 : epoch * 11 + 11])) == 11


def test_a_step_has_the_same_batch_whoever_asks_first(examples: list[Example]) -> None:
    assert (
        Batches(examples, 4, seed=3)[9] == [*map(Batches(examples, 4, 3).__getitem__, range(10))][9]
    )
    assert Batches(examples, 4, seed=3)[9] != Batches(examples, 4, seed=4)[9]


def test_groups_begin_alike_and_leave_nobody_out(examples: list[Example]) -> None:
    facts_alone = examples[:8]
    mixed = [*facts_alone, *(replace(e, id=f"x{e.id}", prompt_ids=(5,)) for e in facts_alone)]
    batches = Batches(mixed, 4, seed=3, group_size=4)
    seen = [batches[step] for step in range(4)]
    assert sorted(e.id for batch in seen for e in batch) == sorted(e.id for e in mixed)
    assert all(len({len(e.prompt_ids) == 1 for e in batch}) == 1 for batch in seen)


def test_the_rate_warms_up_and_comes_down_to_zero() -> None:
    chosen = TrainSettings(learning_rate=1.0, warmup_steps=10)
    assert learning_rate(chosen, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(chosen, 50, 0.5) == pytest.approx(0.5)
    assert learning_rate(chosen, 99, 1.0) == pytest.approx(0.0)


# Packing.


IDS = st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=6))
def test_every_path_spells_its_example(
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    batch = pack([Example("", "", prompt, response) for prompt, response in pairs])
    spelled, start = [], 0
    for rows, length in batch.blocks:
        block = batch.paths[start : start + rows * length].view(rows, length)
        spelled += [(path, tuple(batch.tokens[path].tolist())) for path in block]
        start += rows * length
    for prompt, response in pairs:
        ids = (*prompt, *response[:-1])
        path = next(path for path, tokens in spelled if tokens[: len(ids)] == ids)
        assert batch.positions[path[: len(ids)]].tolist() == list(range(len(ids)))
    for row, (_, response) in enumerate(pairs):
        assert tuple(batch.targets[batch.rows == row].tolist()) == response
    assert torch.equal(batch.paths[batch.owners], torch.arange(batch.num_nodes))
    prefixes = {(*p, *r[:-1])[:n] for p, r in pairs for n in range(1, len(p) + len(r))}
    assert batch.num_nodes == len(prefixes)


# The packed forward pass.


def whole(model: Any, example: Example) -> torch.Tensor:
    """Logits of the response tokens, by transformers and PEFT."""
    ids = torch.tensor([[*example.prompt_ids, *example.response_ids]])
    logits: torch.Tensor = model(input_ids=ids).logits[0, len(example.prompt_ids) - 1 : -1]
    return logits


def gradients(packed: PackedModel, model: Any) -> dict[str, torch.Tensor]:
    """The gradient of each of PEFT's factors, by its name there: they share their storage."""
    owners = {each.untyped_storage().data_ptr(): each for each in packed.parameters()}
    found = {}
    for name, factor in trainable(model).items():
        gradient = owners[factor.untyped_storage().data_ptr()].grad
        if gradient is not None:
            found[name] = torch.as_strided(
                gradient, factor.shape, factor.stride(), factor.storage_offset()
            )
    return found


def test_loss_and_gradients_are_those_of_transformers_and_peft(
    peft_model: Any, examples: list[Example]
) -> None:
    check_loss_and_gradients(peft_model, examples)


@pytest.mark.parametrize("name", ["qwen3", "smollm3, the first layer is not rotated"])
def test_norms_of_heads_and_layers_without_rotation_are_trained_through(
    name: str, tiny_checkpoint: Path, tmp_path: Path, examples: list[Example]
) -> None:
    check_loss_and_gradients(with_factors(make_family(name, tiny_checkpoint, tmp_path)), examples)


def check_loss_and_gradients(peft_model: Any, examples: list[Example]) -> None:
    logits = torch.cat([whole(peft_model, example) for example in examples])
    targets = torch.tensor([token for example in examples for token in example.response_ids])
    expected = functional.cross_entropy(logits, targets)
    expected.backward()
    theirs = {name: factor.grad.clone() for name, factor in trainable(peft_model).items()}
    packed = PackedModel(peft_model)
    loss = packed.loss(pack(examples))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours = gradients(packed, peft_model)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6)


def test_half_precision_stays_near(tiny_checkpoint: Path, examples: list[Example]) -> None:
    model = load_trainable(tiny_checkpoint, TrainSettings(), CPU)
    exact = PackedModel(model).loss(pack(examples)).item()
    half = PackedModel(load_trainable(tiny_checkpoint, TrainSettings(), CPU).bfloat16())
    assert half.loss(pack(examples)).item() == pytest.approx(exact, rel=2e-2)


def test_layers_below_the_first_stay_as_they_are(
    tiny_checkpoint: Path, examples: list[Example]
) -> None:
    model = load_trainable(tiny_checkpoint, TrainSettings(first_layer=1), CPU)
    assert {name.split(".layers.")[1][0] for name in trainable(model)} == {"1"}
    packed = PackedModel(model)
    packed.loss(pack(examples)).backward()  # type: ignore[no-untyped-call]
    assert gradients(packed, model).keys() == trainable(model).keys()


def test_peft_sees_what_the_optimizer_changes(peft_model: Any, examples: list[Example]) -> None:
    packed = PackedModel(peft_model)
    before = whole(peft_model, examples[0])
    with torch.no_grad():
        for factor in packed.parameters():
            factor += 0.01
    after = whole(peft_model, examples[0])
    assert not torch.allclose(before, after)
    batch = pack(examples[:1])
    with torch.inference_mode():
        torch.testing.assert_close(packed.logits(batch), after, rtol=1e-3, atol=1e-3)


# Scoring.


def test_exact_match_is_that_of_greedy_generation(
    peft_model: Any, examples: list[Example], tokenizer: Tokenizer
) -> None:
    """Responses that the model itself would write, some with one token changed."""
    tried = []
    for place, example in enumerate(examples):
        ids = torch.tensor([example.prompt_ids])
        with torch.inference_mode():
            out = peft_model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=5,
                do_sample=False,
            )
        response = out[0, ids.shape[1] :].tolist()
        if place % 3 == 0:
            response[place % len(response)] = 7
        tried.append(Example(str(place), str(place % 3), example.prompt_ids, tuple(response)))
    result = score(PackedModel(peft_model), tried, CPU)
    assert result.by_kind == {"0": 0.0, "1": 1.0, "2": 1.0}
    assert result.num_examples == len(examples)


def test_a_sample_is_the_same_for_the_same_seed(examples: list[Example]) -> None:
    chosen = sample(examples, 60, seed=1)
    assert chosen == sample(examples, 60, seed=1)
    assert 1 <= len(chosen) < len(examples)
    assert len(sample(examples, 1, seed=1)) == 1
