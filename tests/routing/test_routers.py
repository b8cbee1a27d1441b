"""Heads of the router and their files."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.routing.llm_router import LLMRouter
from path_parts import BASE, CHEMISTRY, MATHEMATICS

from compllm.errors import ConfigError, RouteError
from compllm.prompts import prompt_text
from compllm.routing.artefact import Artefact, find_router, load, router_names, save
from compllm.routing.embed import Array
from compllm.routing.heads import Head, Layer, Neighbours, Similarity, Softmax
from compllm.testing import Reply, ScriptedBackend
from compllm.types import Route

EXPERTS = ("a", "b")


def unit(*degrees: float) -> Array:
    angles = np.radians(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def similarity() -> Similarity:
    return Similarity.of_owners(unit(0, 90, 10), ("a", "b", "a"))


def softmax() -> Softmax:
    weights = np.array([[4, 0, -4], [0, 4, 0]], np.float32)
    topics = Layer(weights, np.zeros(3, np.float32), np.array([0, 1, -1]))
    experts = Layer(weights[:, :2], np.array([0, 1], np.float32), np.array([0, 1]))
    return Softmax(EXPERTS, (topics, experts))


def neighbours() -> Neighbours:
    return Neighbours(EXPERTS, unit(0, 5, 90, 180), np.array([0, 0, 1, -1]), 2, 10.0)


HEADS = {"similarity": similarity, "softmax": softmax, "neighbours": neighbours}


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_a_head_scores_the_right_expert_highest(make: type[Head]) -> None:
    scores = make().scores(unit(2, 88))
    assert scores.shape == (2, 2)
    assert scores.argmax(axis=1).tolist() == [0, 1]


def test_similarity_is_the_cosine_with_an_experts_nearest_vector() -> None:
    np.testing.assert_allclose(
        similarity().scores(unit(12)), [[np.cos(np.radians(2)), 0.2079]], 1e-3
    )


@pytest.mark.parametrize("make", [softmax, neighbours])
def test_probabilities_leave_over_that_of_no_expert(make: type[Head]) -> None:
    scores = make().scores(unit(0, 90, 180))
    assert (scores >= 0).all()
    assert (scores.sum(axis=1) <= 1 + 1e-6).all()
    assert scores[2].sum() < scores[0].sum()


def test_an_experts_topics_are_added_up() -> None:
    layer = Layer(np.zeros((2, 4), np.float32), np.zeros(4, np.float32), np.array([0, 0, 1, -1]))
    np.testing.assert_allclose(Softmax(EXPERTS, (layer,)).scores(unit(0)), [[0.5, 0.25]])


def test_nearer_questions_count_more() -> None:
    head = Neighbours(EXPERTS, unit(0, 40), np.array([0, 1]), 2, 10.0)
    scores = head.scores(unit(15))
    assert scores[0, 0] > scores[0, 1] > 0


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(
    ("queries", "says"),
    [
        (np.ones((1, 3), np.float32), r"saw \[1, 3\]"),
        (np.zeros((1, 2), np.float32), "row 0 of queries has length 0"),
        (np.full((1, 2), np.nan, np.float32), "row 0 of queries has length nan"),
    ],
)
def test_a_head_refuses_what_is_no_unit_vector(make: type[Head], queries: Array, says: str) -> None:
    with pytest.raises(RouteError, match=says):
        make().scores(queries)


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_a_router_comes_back_from_its_file(make: type[Head], tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    save(path, Artefact(make(), 0.25, "e", {"risk": 0.1}))
    found = load(path)
    assert (found.floor, found.encoder, found.record) == (0.25, "e", {"risk": 0.1})
    assert found.head.experts == EXPERTS
    queries = unit(*range(0, 360, 7))
    np.testing.assert_allclose(found.head.scores(queries), make().scores(queries), atol=1e-2)
    assert [each.name for each in tmp_path.iterdir()] == ["r.npz"]


def rewrite(path: Path, **changes: object) -> None:
    """The file with arrays replaced, or taken out where the value is None."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files} | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bias0": None}, "'bias0' is missing"),
        ({"bias0": np.zeros(5, np.float32)}, "shapes of layer 0"),
        ({"weights0": np.full((2, 3), np.inf, np.float32)}, "finite"),
        ({"groups0": np.array([0, 1, 2])}, "names experts that are not there"),
        ({"groups0": np.array([0.0, 1, 2])}, "not a row of integers"),
        ({"weights1": np.zeros((3, 2), np.float32)}, "do not fit together"),
        ({"about": np.array("{")}, "Expecting"),
        ({"about": np.array('{"format": 9}')}, "its format is 9"),
    ],
)
def test_a_changed_file_is_refused(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    path = tmp_path / "r.npz"
    save(path, Artefact(softmax(), 0.25, "e"))
    rewrite(path, **changes)
    with pytest.raises(ConfigError, match=rf"cannot read the router in .*{says}"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04"])
def test_what_is_no_router_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.npz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot read the router"):
        load(path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    save(path, Artefact(softmax(), 0.25, "e"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ConfigError, match="cannot read the router"):
        load(path)


def test_an_unknown_name_tells_the_names_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    save(tmp_path / "routers" / "mine.npz", Artefact(softmax(), 0.25, "e"))
    assert "mine" in router_names()
    assert find_router("mine") == tmp_path / "routers" / "mine.npz"
    for name in ("yours", "../mine", ""):
        with pytest.raises(ConfigError, match=r"no router .*: there are .*mine"):
            find_router(name)
    with pytest.raises(ConfigError, match="no router in"):
        load(find_router(str(tmp_path / "gone.npz")))


async def test_the_model_chooses_a_name_or_none() -> None:
    backend = ScriptedBackend(
        Reply("chemistry", contains="iron"),
        Reply("none", contains="Mona"),
        Reply("chem", contains="cut"),
    )
    router = LLMRouter(backend, (CHEMISTRY, MATHEMATICS), BASE)
    routes = await router.route(["What is iron?", "Who is Mona?", "cut"])
    assert routes[0] == Route("chemistry", 1.0, is_fallback=False)
    assert routes[1] == routes[2] == Route("base", 0.0, is_fallback=True)


def test_the_model_reads_the_experts_domains() -> None:
    router = LLMRouter(
        ScriptedBackend(), (CHEMISTRY,), BASE, shots=(("What is neon?", "chemistry"),)
    )
    text = prompt_text(router.prompt("What\nis iron?"))
    assert "chemistry: elements\nnone: anything else" in text
    assert text.index("neon") < text.index("What is iron?")


def test_a_query_alone_has_the_scores_that_it_has_among_others() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 384)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    owners = np.arange(30) % 3
    layer = Layer(rng.standard_normal((384, 30)).astype(np.float32), np.zeros(30, "f"), owners)
    for head in (
        Similarity(("a", "b", "c"), rows[10:], owners),
        Softmax(("a", "b", "c"), (layer,)),
        Neighbours(("a", "b", "c"), rows[10:], owners, 5, 20.0),
    ):
        alone = np.concatenate([head.scores(row[None]) for row in rows[:10]])
        np.testing.assert_allclose(alone, head.scores(rows[:10]), atol=1e-5)
