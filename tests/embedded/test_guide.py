"""guide.py on the real tokenizer: what each type allows, how it ends, what is refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from tokenizers import Tokenizer

from compllm.embedded.guide import Guide, GuideCompiler
from compllm.embedded.request import EngineSampling
from compllm.embedded.sampling import NO_TOKEN, SamplerState, sample_batch
from compllm.errors import ArtefactError, RequestInvalid
from compllm.plan import parse_plan, plan_guide

VOCAB = 49152
END = 2


@pytest.fixture(scope="module")
def tokenizer(base_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(str(base_dir / "tokenizer.json"))


@pytest.fixture(scope="module")
def compiler(base_dir: Path) -> GuideCompiler:
    return GuideCompiler(base_dir, VOCAB, [END])


def allowed(guide: Guide) -> set[int]:
    row = np.zeros(VOCAB, np.float32)
    guide.mask(row)
    assert set(np.unique(row)) <= {0.0, -np.inf}
    return set(np.flatnonzero(row == 0).tolist())


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def is_accepted(guide: Guide, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the masks let this whole text through, and then the end."""
    for token in ids_of(tokenizer, text):
        if token not in allowed(guide):
            return False
        guide.accept(token)
    return END in allowed(guide)


def generate(guide: Guide, tokenizer: Tokenizer, seed: int, max_tokens: int = 200) -> str:
    """What a model of random logits writes under the guide."""
    rng = np.random.default_rng(seed)
    state = SamplerState(EngineSampling(), end_ids=[END], guide=guide)
    tokens: list[int] = []
    while len(tokens) < max_tokens and not state.is_finished:
        token = int(sample_batch(rng.standard_normal((1, VOCAB)).astype(np.float32), [state])[0])
        assert token != NO_TOKEN, guide.error
        if token == END:
            break
        tokens.append(token)
    return str(tokenizer.decode(tokens))


@pytest.mark.parametrize(
    ("guide_type", "text", "good", "bad"),
    [
        ("regex", "(yes|no)", "no", "maybe"),
        ("regex", r"^\d{2}-[a-f]+$", "12-abc", "12-xyz"),
        ("json", None, '{"a": [1, "b"]}', "1"),
        ("json", None, "[1, 2]", "[1 2]"),
        (
            "json_schema",
            '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}',
            '{"n": 12}',
            '{"n": "x"}',
        ),
    ],
)
def test_each_type_lets_through_what_it_describes(
    compiler: GuideCompiler,
    tokenizer: Tokenizer,
    guide_type: str,
    text: str | None,
    good: str,
    bad: str,
) -> None:
    assert is_accepted(compiler.start(guide_type, text, [END]), tokenizer, good)
    assert not is_accepted(compiler.start(guide_type, text, [END]), tokenizer, bad)


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ('root ::= "a" | "b"', "b"),
        ('root ::= "a"\n  | "b"\n', "b"),
        ('root ::= "a"\n  "b"\n  tail\ntail ::= (\n "x"\n | "y" )', "aby"),
        (
            '# top\nroot ::= line+ # a "quote\nline ::= [0-9]+ " | " [^\\n|]+ "\\n"',
            "1 | a\n2 | b\n",
        ),
        ('root ::= "\\u00e9#" [\\u0041-\\x43]', "é#B"),
        ("root ::= [a\\-z\\]]+", "a-]z"),
        ('root ::= "a"{2,3} "/"?', "aaa/"),
        ('root ::= [^"\\\\]+ "end"', "any text end"),
        ('root ::= "(" root ")" | [a-z]+', "((abc))"),
        (
            'root ::= "say: " words\nwords ::= word (" " words)?\nword ::= [^ \\n]+',
            "say: oh my",
        ),
        (
            'root ::= (expr "=" expr "\\n")+\nexpr ::= term ([-+*/] term)*\n'
            'term ::= num | "(" expr ")"\nnum ::= [0-9]+',
            "1+(2*3)=7\n",
        ),
    ],
)
def test_grammars_in_xgrammars_dialect(
    compiler: GuideCompiler, tokenizer: Tokenizer, grammar: str, text: str
) -> None:
    guide = compiler.start("ebnf_grammar", grammar, [END])
    assert is_accepted(guide, tokenizer, text), guide.error


def test_free_text_inside_a_recursive_rule_is_not_broken_off(
    compiler: GuideCompiler, tokenizer: Tokenizer
) -> None:
    guide = compiler.start("ebnf_grammar", 'root ::= [^()]+ | "(" root ")" root', [END])
    assert is_accepted(guide, tokenizer, "(some words) and more"), guide.error


def test_the_end_is_allowed_only_where_the_guide_is_complete(compiler: GuideCompiler) -> None:
    guide = compiler.start("regex", "a{2,3}", [END])
    assert END not in allowed(guide)


def test_a_guide_terminates_when_nothing_but_the_end_can_follow(
    compiler: GuideCompiler, tokenizer: Tokenizer
) -> None:
    guide = compiler.start("regex", "(yes|yesterday)", [END])
    for token in ids_of(tokenizer, "yes"):
        guide.accept(token)
    assert (guide.is_accepting, guide.is_terminated) == (True, False)
    for token in ids_of(tokenizer, "terday"):
        guide.accept(token)
    assert (guide.is_accepting, guide.is_terminated) == (True, True)
    assert allowed(guide) == {END}


def test_a_request_with_its_own_end_token_is_offered_that_one(
    compiler: GuideCompiler, tokenizer: Tokenizer
) -> None:
    guide = compiler.start("regex", "a+", [7])
    assert not {7, END} & allowed(guide)
    guide.accept(ids_of(tokenizer, "a")[0])
    assert {7, END} & allowed(guide) == {7}
    guide.accept(7)
    assert guide.error is None


def test_a_request_without_an_end_token_is_offered_none(
    compiler: GuideCompiler, tokenizer: Tokenizer
) -> None:
    guide = compiler.start("regex", "a+", [-1])
    guide.accept(ids_of(tokenizer, "a")[0])
    assert END not in allowed(guide)


def test_special_tokens_never_pass_as_text(compiler: GuideCompiler, tokenizer: Tokenizer) -> None:
    special = {tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")}
    assert None not in special
    assert not special & allowed(compiler.start("regex", ".*x", [END]))


def test_a_foreign_token_leaves_an_error_and_no_token(compiler: GuideCompiler) -> None:
    guide = compiler.start("regex", "[0-9]+", [END])
    state = SamplerState(EngineSampling(), guide=guide)
    guide.accept(9999)
    assert guide.error
    assert not state.is_finished
    assert sample_batch(np.zeros((1, VOCAB), np.float32), [state])[0] == NO_TOKEN
    assert state.error.startswith("guided decoding failed: ")


@pytest.mark.parametrize("seed", range(3))
def test_random_logits_write_a_valid_plan(
    compiler: GuideCompiler, tokenizer: Tokenizer, seed: int
) -> None:
    plan = plan_guide(4, max_text_chars=40)
    text = generate(compiler.start(plan.type, plan.text, [END]), tokenizer, seed)
    assert 1 <= len(parse_plan(text).sub_queries) <= 4


def test_random_logits_write_valid_json(compiler: GuideCompiler, tokenizer: Tokenizer) -> None:
    # They would write white space for ever if the guide let them.
    schema = {
        "type": "object",
        "properties": {"k": {"enum": ["a", "b"]}, "n": {"type": "integer", "maximum": 99}},
        "required": ["k", "n"],
        "additionalProperties": False,
    }
    text = generate(compiler.start("json_schema", json.dumps(schema), [END]), tokenizer, 0)
    assert set(json.loads(text)) == {"k", "n"}


def test_guides_of_one_text_are_independent(compiler: GuideCompiler, tokenizer: Tokenizer) -> None:
    first, second = (compiler.start("regex", "ab+c", [END]) for _ in range(2))
    before = allowed(second)
    for token in ids_of(tokenizer, "abc"):
        first.accept(token)
    assert first.is_terminated
    assert allowed(second) == before


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(guide_type=st.sampled_from(["regex", "json_schema", "ebnf_grammar"]), text=st.text())
def test_any_text_gives_a_guide_or_our_error(
    compiler: GuideCompiler, guide_type: str, text: str
) -> None:
    with contextlib.suppress(RequestInvalid):
        compiler.start(guide_type, text, [END]).mask(np.zeros(VOCAB, np.float32))


@pytest.mark.parametrize(
    ("guide_type", "text", "message"),
    [
        ("xml", "<a/>", "'xml': it must be one of regex, json, json_schema, ebnf_grammar"),
        ("regex", None, "regex guide is empty"),
        ("regex", "(ab", r"cannot use the regex guide '\(ab'.*unclosed group"),
        ("regex", "a(?=b)", "look-around"),
        ("regex", "\ud800", "surrogates not allowed"),
        ("regex", "a" * 100_001, "100001 characters: at most 100000"),
        ("json_schema", "{", "Expecting property name"),
        ("json_schema", '{"type": "foo"}', "Invalid type: foo"),
        ("json_schema", '{"minimum": 3, "maximum": 2, "type": "integer"}', "minimum"),
        ("ebnf_grammar", 'main ::= "a"', "no rule 'root"),
        ("ebnf_grammar", "root ::= foo", "'foo' not found"),
        ("ebnf_grammar", 'root ::= "a', "Unexpected end"),
    ],
)
def test_a_bad_guide_is_refused_with_the_reason(
    compiler: GuideCompiler, guide_type: str, text: str | None, message: str
) -> None:
    with pytest.raises(RequestInvalid, match=message):
        compiler.start(guide_type, text)


def test_a_missing_tokenizer_and_a_small_vocabulary_are_refused(
    base_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match=r"tokenizer\.json gives no tokenizer"):
        GuideCompiler(tmp_path, VOCAB, [END])
    with pytest.raises(ArtefactError, match="vocab size too small"):
        GuideCompiler(base_dir, 1000, [END])


@pytest.mark.parametrize("num_nodes", [1, 5, 16])
@pytest.mark.parametrize("is_question_only", [False, True])
@pytest.mark.parametrize("marks_cut", [False, True])
def test_every_guide_of_a_plan_is_known_as_our_own(
    compiler: GuideCompiler, num_nodes: int, is_question_only: bool, marks_cut: bool
) -> None:
    plan = plan_guide(num_nodes, is_question_only=is_question_only, marks_cut=marks_cut)
    assert compiler.is_quick(plan.type, plan.text)
    assert not compiler.is_quick(plan.type, plan.text + "x")
    assert compiler.start(plan.type, plan.text, [END]).is_own


def test_clients_guides_do_not_push_out_the_plans(base_dir: Path) -> None:
    compiler = GuideCompiler(base_dir, VOCAB, [END], lambda guide_type, text: 2**29)
    plan = plan_guide(2)
    compiler.start(plan.type, plan.text)
    for number in range(3):
        compiler.start("regex", f"a{{{number + 1}}}")
    with mock.patch("compllm.embedded.guide.LLMatcher", wraps=LLMatcher) as compiled:
        compiler.start(plan.type, plan.text)
        compiler.start("regex", "a{3}")
        assert compiled.call_count == 0
        compiler.start("regex", "a{2}")  # pushed out, by the bytes of their trials
        assert compiled.call_count == 1


def test_a_model_without_end_tokens_takes_that_of_the_request(
    base_dir: Path, tokenizer: Tokenizer
) -> None:
    guide = GuideCompiler(base_dir, VOCAB, []).start("regex", "a+", [7])
    guide.accept(ids_of(tokenizer, "a")[0])
    row = np.zeros(VOCAB, np.float32)
    guide.mask(row)
    special = tokenizer.token_to_id("<|endoftext|>")
    assert row[[7, special]].tolist() == [0, -np.inf]


def test_a_guide_whose_masks_take_too_long_ends(
    compiler: GuideCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compllm.embedded.guide.MAX_MASK_S", 0.0)
    guide = compiler.start("regex", "[a-z]+", [END])
    guide.prepare()
    assert "masks of this guide took more than" in (guide.error or "")
