from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from path_parts import CATALOGUE
from threshold_oracle import calibrate

from compllm.catalogue import Catalogue, RouterSettings, load_catalogue
from compllm.errors import RouteError
from compllm.routing.artefact import Artefact, load, save
from compllm.routing.embed import Array, SentenceEncoder
from compllm.routing.heads import Layer, Similarity, Softmax
from compllm.routing.route import Router
from compllm.testing import HashingEncoder
from compllm.types import Route


def rows(*values: tuple[float, float]) -> Array:
    return np.array(values, np.float32).reshape(-1, 2)


class UnitModel:
    """Stands for the loaded network."""

    num_calls = 0

    def get_embedding_dimension(self) -> int:
        return 2

    def encode(self, texts: list[str], **_: object) -> Array:
        self.num_calls += 1
        angles = np.array([len(text) for text in texts], np.float32)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)


AXES = rows((1, 0), (0, 1))


def route(
    queries: Array, vectors: Array, owners: tuple[str, ...], floor: float, default: str = "base"
) -> tuple[Route, ...]:
    return Router(Similarity.of_owners(vectors, owners), floor, default).route(queries)


def test_the_nearest_expert_answers() -> None:
    routes = route(rows((0.8, 0.6), (0, 1)), AXES, ("a", "b"), 0.1)
    assert [each.expert for each in routes] == ["a", "b"]
    assert [each.similarity for each in routes] == pytest.approx([0.8, 1.0])
    assert not any(each.is_fallback for each in routes)


def test_below_the_floor_the_default_answers_and_the_similarity_is_kept() -> None:
    (found,) = route(rows((-0.6, -0.8)), AXES, ("a", "b"), 0.0, "base")
    assert (found.expert, found.is_fallback) == ("base", True)
    assert found.similarity == pytest.approx(-0.6)


def test_an_expert_may_own_several_vectors() -> None:
    vectors = rows((1, 0), (0, 1), (-1, 0))
    assert route(rows((-1, 0)), vectors, ("a", "b", "a"), 0.0)[0].expert == "a"


def test_ties_go_to_the_earlier_vector() -> None:
    assert route(rows((1, 0)), rows((1, 0), (1, 0)), ("a", "b"), 0.0)[0].expert == "a"


def test_no_queries_are_no_routes() -> None:
    assert route(rows(), AXES, ("a", "b"), 0.0) == ()


@pytest.mark.parametrize(
    ("queries", "vectors", "owners", "says"),
    [
        (np.ones((1, 3), np.float32), AXES, ("a", "b"), r"saw \[1, 3\]"),
        (rows((2, 0)), AXES, ("a", "b"), "row 0 of queries has length 2"),
        (rows((float("nan"), 0)), AXES, ("a", "b"), "row 0 of queries has length nan"),
        (rows((1, 0)), rows((1, 0), (0, 0)), ("a", "b"), "row 1 of vectors has length 0"),
    ],
)
def test_wrong_vectors_are_refused(
    queries: Array, vectors: Array, owners: tuple[str, ...], says: str
) -> None:
    with pytest.raises(RouteError, match=says):
        route(queries, vectors, owners, 0.0)


async def test_a_router_knows_its_catalogues_questions() -> None:
    encoder = HashingEncoder()
    router = await Router.build(CATALOGUE, encoder)
    routes = router.route(await encoder.encode(["What is the atomic number of iron?", "Zebra?"]))
    assert [each.expert for each in routes] == ["chemistry", "base"]


async def test_a_threshold_of_another_encoder_is_refused() -> None:
    catalogue = replace(CATALOGUE, router=RouterSettings(0.5, "sha256:other"))
    with pytest.raises(RouteError, match="'sha256:other', not 'hashing-64'"):
        await Router.build(catalogue, HashingEncoder())


async def test_without_experts_the_base_answers_everything() -> None:
    encoder = HashingEncoder()
    catalogue = replace(
        CATALOGUE, experts=(), examples=(), router=RouterSettings(0.5, "sha256:other")
    )
    router = await Router.build(catalogue, encoder)
    assert router.route(await encoder.encode(["a"])) == (Route("base", 0.0, is_fallback=True),)


async def test_calibration_separates_what_can_be_separated() -> None:
    calibration = await calibrate(CATALOGUE, HashingEncoder())
    assert calibration.in_domain_accuracy == calibration.out_of_domain_accuracy == 1.0
    catalogue = replace(CATALOGUE, router=RouterSettings(calibration.threshold, HashingEncoder.id))
    encoder = HashingEncoder()
    router = await Router.build(catalogue, encoder)
    outside = router.route(await encoder.encode(CATALOGUE.out_of_domain))
    assert all(each.is_fallback for each in outside)


async def test_a_router_asks_the_encoder_for_its_examples_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    catalogue = replace(CATALOGUE, router=RouterSettings(0.5, "id/plain1"))
    builds = []
    for _ in range(2):
        model = UnitModel()
        builds.append((await Router.build(catalogue, SentenceEncoder(model, "id")), model))
    assert [model.num_calls for _, model in builds] == [1, 0]
    heads = [router.head for router, _ in builds]
    assert isinstance(heads[0], Similarity)
    assert isinstance(heads[1], Similarity)
    np.testing.assert_array_equal(heads[0].vectors, heads[1].vectors)


def fitted(path: Path, encoder: str = HashingEncoder.id, names: tuple[str, ...] = ()) -> Path:
    """A router that finds everything chemical."""
    experts = names or ("chemistry", "mathematics")
    layer = Layer(
        np.zeros((64, 2), np.float32), np.array([3, 0], np.float32), np.arange(2, dtype=np.int64)
    )
    save(path, Artefact(Softmax(experts, (layer,)), 0.6, encoder))
    return path


def with_head(path: Path) -> Catalogue:
    return replace(CATALOGUE, router=replace(CATALOGUE.router, head=path))


async def test_a_catalogue_may_name_a_fitted_router(tmp_path: Path) -> None:
    encoder = HashingEncoder()
    router = await Router.build(with_head(fitted(tmp_path / "r.npz")), encoder)
    (found,) = router.route(await encoder.encode(["What is 3 plus 4?"]))
    assert (found.expert, found.is_fallback) == ("chemistry", False)
    assert found.similarity == pytest.approx(1 / (1 + np.exp(-3)))


async def test_a_fitted_routers_own_floor_holds(tmp_path: Path) -> None:
    encoder = HashingEncoder()
    path = fitted(tmp_path / "r.npz")
    save(path, replace(load(path), floor=0.99))
    router = await Router.build(with_head(path), encoder)
    (found,) = router.route(await encoder.encode(["What is 3 plus 4?"]))
    assert (found.expert, found.is_fallback) == ("base", True)


async def test_a_router_of_another_encoder_is_refused(tmp_path: Path) -> None:
    catalogue = with_head(fitted(tmp_path / "r.npz", encoder="sha256:other"))
    with pytest.raises(RouteError, match="'sha256:other', not 'hashing-64'"):
        await Router.build(catalogue, HashingEncoder())


async def test_a_router_of_other_experts_is_refused(tmp_path: Path) -> None:
    catalogue = with_head(fitted(tmp_path / "r.npz", names=("law", "chemistry")))
    with pytest.raises(RouteError, match="knows the experts law, chemistry, the catalogue"):
        await Router.build(catalogue, HashingEncoder())


async def test_the_shipped_routers_fit_the_shipped_catalogue(encoder: SentenceEncoder) -> None:
    catalogue = load_catalogue()
    assert catalogue.router.head is not None
    questions = {
        "How many protons does one atom of copper contain?": "chemistry",
        "What is the anticodon matching the codon C C A?": "biology",
        "Which of the two is higher, #1 or #2?": "mathematics",
        "Who painted the Mona Lisa?": "base",
    }
    for path in (catalogue.router.head, catalogue.router.head.with_name("similarity.npz")):
        router = await Router.load(path, catalogue, encoder)
        routes = router.route(await encoder.encode(list(questions)))
        assert [each.expert for each in routes] == list(questions.values())


async def test_the_shipped_threshold_is_the_calibrated_one(encoder: SentenceEncoder) -> None:
    catalogue = load_catalogue()
    calibration = await calibrate(catalogue, encoder)
    assert catalogue.router.encoder == encoder.id
    # The last digits of a vector depend on the processor.
    assert catalogue.router.threshold == pytest.approx(calibration.threshold, abs=0.01)
    assert calibration.in_domain_accuracy > 0.8
    assert calibration.out_of_domain_accuracy > 0.85
