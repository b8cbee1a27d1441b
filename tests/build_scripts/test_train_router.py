"""Fitting the router: questions, heads, floors, and the script as a whole."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from compllm.build_scripts import train_router
from compllm.build_scripts.routing.fit import FITS, PLAIN, out_of_fold
from compllm.build_scripts.routing.questions import (
    GENERATED,
    ORDINARY,
    Question,
    first_of_each,
    halves,
    read_composites,
    read_datasets,
    read_ordinary,
    read_questions,
    read_subjects,
    thin_out,
)
from compllm.build_scripts.routing.thresholds import at_floor, choose_floor, risk_coverage
from compllm.build_scripts.routing.vectors import Space, base_spaces, kept_vectors
from compllm.catalogue import load_catalogue
from compllm.errors import ConfigError
from compllm.routing.artefact import load
from compllm.routing.embed import Array

EXPERTS = ("a", "b")


def clouds(seed: int = 0, spread: float = 0.25) -> tuple[Array, np.ndarray, np.ndarray]:
    """Unit rows around four directions: a, b and two topics for no expert."""
    rng = np.random.default_rng(seed)
    centres = np.eye(4, 8, dtype=np.float32)
    rows = np.repeat(centres, 40, axis=0) + spread * rng.standard_normal((160, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = np.repeat([0, 1, -1, -1], 40)
    return rows.astype(np.float32), labels, np.repeat(["ta", "tb", "tx", "ty"], 40)


@pytest.mark.parametrize("name", FITS)
def test_every_head_finds_the_experts_and_tells_strangers_apart(name: str) -> None:
    fit_on, test_on = clouds(0), clouds(1)
    scores = FITS[name](*fit_on, EXPERTS).scores(test_on[0])
    inside = test_on[1] >= 0
    assert (scores.argmax(axis=1) == test_on[1])[inside].mean() > 0.95
    assert scores[inside].max(axis=1).mean() > scores[~inside].max(axis=1).mean() + 0.2


def test_two_classes_are_a_softmax_too() -> None:
    rows, labels, topics = clouds()
    keep = labels >= 0
    head = FITS["logistic"](rows[keep], labels[keep], topics[keep], EXPERTS)
    scores = head.scores(rows[keep])
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    assert (scores.argmax(axis=1) == labels[keep]).mean() > 0.95


def test_generated_questions_are_classes_and_clusters_of_their_own() -> None:
    rows, labels, topics = clouds()
    topics = topics.astype("<U8")
    topics[:20] = GENERATED + "a"  # half of a's
    (layer,) = FITS["logistic-experts"](rows, labels, topics, EXPERTS).layers  # type: ignore[attr-defined]
    assert sorted(layer.groups.tolist()) == [-1, 0, 0, 1]
    owners = FITS["similarity"](rows, labels, topics, EXPERTS).owners  # type: ignore[attr-defined]
    assert np.bincount(owners).tolist() == [16 + 8, 16]


def test_plain_similarity_has_cosines() -> None:
    rows, labels, topics = clouds()
    for name in PLAIN:
        scores = FITS[name](rows, labels, topics, EXPERTS).scores(rows)
        assert -1 <= scores.min() < scores.max() <= 1


def test_a_question_is_scored_by_a_head_that_has_not_seen_it() -> None:
    rows, labels, topics = clouds(spread=2.0)  # noise: only a question itself has its label

    def memory(r: Array, found: np.ndarray, t: np.ndarray, e: tuple[str, ...]) -> object:
        return FITS["neighbours"](r, found, t, e)

    texts = [str(number) for number in range(len(rows))]
    unseen = out_of_fold(memory, rows, labels, topics, EXPERTS, groups=texts)  # type: ignore[arg-type]
    seen = FITS["neighbours"](rows, labels, topics, EXPERTS).scores(rows)
    right = [(s.argmax(axis=1) == labels)[labels >= 0].mean() for s in (seen, unseen)]
    assert right[1] < right[0]


def scored(num: int, seed: int = 0) -> tuple[Array, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 2, num)
    scores = rng.uniform(0, 0.5, (num, 2)).astype(np.float32)
    scores[labels >= 0, labels[labels >= 0]] += rng.uniform(0, 0.5, (labels >= 0).sum())
    return scores, labels


def test_a_floor_keeps_the_wanted_risk_on_new_questions() -> None:
    scores, labels = scored(4000)
    chosen = choose_floor(scores, labels, 0.1)
    assert chosen.is_met
    assert chosen.risk <= chosen.risk_bound <= 0.1
    assert at_floor(*scored(4000, seed=1), chosen.floor)["risk"] <= 0.1


def test_a_looser_risk_covers_more() -> None:
    choices = [choose_floor(*scored(4000), risk) for risk in (0.05, 0.2)]
    assert choices[0].coverage < choices[1].coverage
    assert choices[0].floor > choices[1].floor


def test_a_risk_that_cannot_be_kept_gives_a_useful_floor_and_says_so() -> None:
    scores, labels = scored(50)
    chosen = choose_floor(scores, labels, 0.001)
    assert not chosen.is_met
    assert chosen.right > 0.5
    assert chosen.refused > 0.5


def test_the_curve_starts_strict_and_ends_with_everything_in_domain() -> None:
    curve = risk_coverage(*scored(500))
    assert (np.diff(curve.floors) < 0).all()
    assert (np.diff(curve.coverage) >= 0).all()
    assert curve.coverage[-1] == 1


def write(path: Path, records: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_subjects_become_experts_or_nobody(tmp_path: Path) -> None:
    path = write(
        tmp_path / "s.jsonl",
        [
            {"question": "What is iron?", "subject": "college_chemistry"},
            {"question": "What is law?", "subject": "jurisprudence"},
        ],
    )
    assert read_subjects(path) == (
        Question("What is iron?", "chemistry", "college_chemistry"),
        Question("What is law?", None, "jurisprudence"),
    )


def test_questions_may_name_their_expert(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [{"question": "x", "expert": None}])
    assert read_questions(path) == (Question("x", None, "given-none"),)


def test_data_sets_are_read_as_far_as_they_are_there(tmp_path: Path) -> None:
    write(tmp_path / "chemistry" / "train.jsonl", [{"question": "x", "domain": "chemistry"}])
    write(tmp_path / "p" / "test.jsonl", [{"steps": ["x", "y"], "experts": ["a", "b"]}])
    assert read_datasets(tmp_path, ("chemistry", "law"), "train") == (
        Question("x", "chemistry", "set-chemistry"),
    )
    found = read_composites(tmp_path, "test", ("p", "all"))
    assert [(question.text, question.expert) for question in found] == [("x", "a"), ("y", "b")]


def test_further_training_joins_without_what_the_expert_does_not_know(tmp_path: Path) -> None:
    write(tmp_path / "chemistry" / "train.jsonl", [{"question": "x", "kind": "symbol"}])
    write(
        tmp_path / "chemistry-more" / "train.jsonl",
        [{"question": "y", "kind": "fact"}, {"question": "z", "kind": "unknown"}],
    )
    assert read_datasets(tmp_path, ("chemistry",), "train") == (
        Question("x", "chemistry", "set-chemistry"),
        Question("y", "chemistry", "set-chemistry-more-fact"),
    )


def test_ordinary_questions_are_for_no_expert_and_may_be_missing(tmp_path: Path) -> None:
    assert read_ordinary(tmp_path, "train") == ()
    row = {"question": "????", "expert": None, "topic": ORDINARY}
    write(tmp_path / "ordinary" / "train.jsonl", [row])
    assert read_ordinary(tmp_path, "train") == (Question("????", None, ORDINARY),)


def test_gathering_takes_the_sets_and_thins_ordinary_questions_by_their_own_limit(
    tmp_path: Path,
) -> None:
    ordinary = [{"question": f"q{n}", "expert": None, "topic": ORDINARY} for n in range(2000)]
    write(tmp_path / "ordinary" / "train.jsonl", ordinary)
    for name in ("biology", "biology-more"):
        rows = [{"question": f"{name} {n}", "kind": "symbol"} for n in range(30)]
        write(tmp_path / name / "train.jsonl", rows)
    arguments = train_router.make_parser().parse_args(
        ["--datasets", str(tmp_path), "--max-each", "20"]
    )
    topics = [question.topic for question in train_router.gather(arguments, load_catalogue(None))]
    assert topics.count(ORDINARY) == train_router.MAX_ORDINARY
    assert topics.count("set-biology") == topics.count("set-biology-more") == 20
    hashed = train_router.input_hashes(arguments, ("biology",))
    assert list(hashed) == [
        f"{name}/train.jsonl" for name in ("biology", "biology-more", "ordinary")
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2 is not a JSON object"),
        ("[]", "line 2 is not a JSON object"),
        ("3", "line 2 is not a JSON object"),
        ('{"question": "x"}', "line 2 has no 'subject'"),
        ('{"question": 3, "subject": "x"}', "line 2: the question is 3, expected text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"question": "x", "subject": "y"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=says):
        read_subjects(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_subjects(tmp_path / "gone.jsonl")


def numbered(topic: str, num: int, expert: str | None = None) -> list[Question]:
    return [Question(f"{topic} {number}", expert, topic) for number in range(num)]


def test_halves_share_no_text_and_split_every_topic() -> None:
    questions = [*numbered("x", 10), *numbered("y", 7), Question("x 0", None, "z")]
    ours, theirs = halves(questions)
    assert {q.text for q in ours}.isdisjoint(q.text for q in theirs)
    assert [sum(q.topic == "x" for q in side) for side in (ours, theirs)] == [5, 5]
    assert len(ours) + len(theirs) == 18


def test_thinning_keeps_small_topics_whole() -> None:
    kept = thin_out([*numbered("x", 50), *numbered("x", 50), *numbered("y", 3)], 10, seed=0)
    assert sum(q.topic == "x" for q in kept) == 10
    assert sum(q.topic == "y" for q in kept) == 3
    assert len({q.text for q in kept}) == 13
    assert [q.text for q in first_of_each(numbered("x", 9), 2)] == ["x 0", "x 1"]


class Counter:
    """A space whose rows are the lengths of the texts; counts how many it computed."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.num, self.stop_after = 0, stop_after

    def space(self) -> Space:
        def embed(texts: Sequence[str]) -> Iterator[tuple[int, Array]]:
            for place in reversed(range(len(texts))):
                if self.num == self.stop_after:
                    raise KeyboardInterrupt
                self.num += 1
                yield place, np.array([len(texts[place]), 1], np.float32)

        return Space("count", "id", embed)


def test_vectors_are_computed_once(tmp_path: Path) -> None:
    counter = Counter()
    rows = kept_vectors(counter.space(), ["a", "bbb", "a"], tmp_path)
    assert rows[:, 0].tolist() == [1, 3, 1]
    again = kept_vectors(counter.space(), ["bbb", "cc"], tmp_path)
    assert again[:, 0].tolist() == [3, 2]
    assert counter.num == 3


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    texts = ["x" * length for length in range(1, 1200)]
    with pytest.raises(KeyboardInterrupt):
        kept_vectors(Counter(stop_after=1100).space(), texts, tmp_path)
    counter = Counter()
    rows = kept_vectors(counter.space(), texts, tmp_path)
    assert rows[:, 0].tolist() == list(range(1, 1200))
    assert counter.num == 1199 - 1024


@pytest.mark.slow
def test_hidden_states_do_not_depend_on_the_batch(tiny_checkpoint: Path, tmp_path: Path) -> None:
    texts = ["What is iron?", "How many legs does a spider have, and how many has an ant?", "x"]
    alone = [
        np.stack([kept_vectors(space, [text], tmp_path / "alone")[0] for text in texts])
        for space in base_spaces(tiny_checkpoint, "a")
    ]
    for space, expected in zip(base_spaces(tiny_checkpoint, "b"), alone, strict=True):
        rows = kept_vectors(space, texts, tmp_path / "together")
        np.testing.assert_allclose(rows, expected, atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 0.01


def test_the_script_writes_routers_that_load(
    tmp_path: Path, encoder_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "routers"
    arguments = ["--out", str(out), "--routers", "logistic", "--risk", "0.5"]
    assert train_router.main([*arguments, "--datasets", str(tmp_path)]) == 0
    artefact = load(out / "logistic.npz")
    assert artefact.head.experts == ("chemistry", "biology", "mathematics")
    assert artefact.encoder.startswith("sha256:")
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["questions"]["none"] >= 24
    assert record["choice"]["floor"] == artefact.floor


def test_questions_for_a_stranger_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "q.jsonl", [{"question": "x", "expert": "law"}])
    arguments = ["--questions", str(path), "--out", str(tmp_path), "--datasets", str(tmp_path)]
    assert train_router.main(arguments) == 1
    assert "questions for law: the catalogue" in capsys.readouterr().err
