"""What is kept between runs: outcomes by record, answers by request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarks.accuracy.cache import AnswerCache, CachedBackend
from benchmarks.accuracy.runner import Work, run_records
from benchmarks.store import ResultStore, content_hash, source_hash

from compllm.backend import GenerateRequest, Segment, collect
from compllm.errors import ArtefactError, BackendError, ConfigError
from compllm.testing import Reply, ScriptedBackend
from compllm.types import SamplingParams

QUIET = Work(concurrency=2, is_quiet=True)


@dataclass(frozen=True)
class Item:
    id: str
    text: str = ""


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[AnswerCache]:
    made = AnswerCache(tmp_path / "answers.sqlite")
    yield made
    made.close()


def request(text: str, **more: object) -> GenerateRequest:
    return GenerateRequest("r", (Segment(text),), **more)  # type: ignore[arg-type]


async def test_a_killed_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    asked: list[str] = []

    async def answer(item: Item) -> dict[str, str]:
        if item.id == "c" and len(asked) < 3:
            raise ArtefactError("the engine failed: dead")
        asked.append(item.id)
        return {"answer": item.text}

    items = [Item(name, name.upper()) for name in "abcd"]
    with pytest.raises(ArtefactError, match="dead"):
        await run_records("", items, answer, ResultStore(tmp_path, "x", "1"), Work(1, True))
    assert asked == ["a", "b"]
    asked.append("restart")
    outcomes = await run_records("", items, answer, ResultStore(tmp_path, "x", "1"), QUIET)
    assert [outcome["answer"] for outcome in outcomes] == ["A", "B", "C", "D"]
    assert asked == ["a", "b", "restart", "c", "d"]


async def test_a_changed_record_or_configuration_is_run_again(tmp_path: Path) -> None:
    async def answer(item: Item) -> dict[str, str]:
        return {"answer": item.text}

    async def run(text: str, configuration: str) -> str:
        store = ResultStore(tmp_path, "x", configuration)
        (outcome,) = await run_records("", [Item("a", text)], answer, store, QUIET)
        return str(outcome["answer"])

    assert await run("old", "1") == "old"
    assert await run("new", "1") == "new"
    assert await run("new", "2") == "new"
    assert ResultStore(tmp_path, "x", "1").get("a", content_hash(Item("a", "new")))


def test_a_line_that_broke_off_is_cut_away(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, "x", "1")
    store.put("a", "h", {"answer": "1"})
    store.close()
    with store.path.open("ab") as handle:
        handle.write(b'{"id": "b", "rec')
    again = ResultStore(tmp_path, "x", "1")
    assert again.get("a", "h") == {"answer": "1"}
    assert again.get("b", "h") is None
    assert again.path.read_bytes().endswith(b"\n")


async def test_records_of_one_id_are_refused(tmp_path: Path) -> None:
    async def answer(item: Item) -> dict[str, str]:
        return {}

    items = [Item("a"), Item("a", "other")]
    with pytest.raises(ValueError, match="same id"):
        await run_records("", items, answer, ResultStore(tmp_path, "x", "1"), QUIET)


def test_a_hash_tells_dataclasses_apart() -> None:
    assert content_hash(Item("a")) == content_hash(Item("a"))
    assert content_hash(Item("a")) != content_hash(Item("a", "b"))
    with pytest.raises(TypeError, match="cannot be hashed"):
        content_hash(object())


def test_a_comment_changes_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    hashes = []
    for source in ("def f():\n    return 1", '"""Doc."""\ndef f():  # why\n    "d"\n    return 1'):
        path.write_text(source)
        hashes.append(source_hash([path]))
    path.write_text("def f():\n    return 2")
    assert hashes[0] == hashes[1] != source_hash([path])


async def test_the_same_request_is_generated_once(cache: AnswerCache) -> None:
    backend = ScriptedBackend(Reply(("two ", "pieces")))
    cached = CachedBackend(backend, cache, "engine")
    for is_streamed in (True, False, True):
        text, last = await collect(cached, request("a", is_streamed=is_streamed))
        assert text == "two pieces"
        assert last.finish_reason == "stop"
        assert last.usage is not None
        assert last.usage.num_output_tokens == 2
    assert len(backend.requests) == 1
    assert (cached.num_made, cached.num_kept) == (1, 2)


async def test_whatever_decides_an_answer_makes_another_request(cache: AnswerCache) -> None:
    backend = ScriptedBackend(Reply("x"))
    requests = [
        request("a"),
        request("b"),
        request("a", adapter_id=7),
        request("a", sampling=SamplingParams(max_tokens=3)),
        GenerateRequest("r", (Segment("a", is_template=True),)),
    ]
    for each in requests:
        await collect(CachedBackend(backend, cache, "engine"), each)
    await collect(CachedBackend(backend, cache, "another engine"), requests[0])
    assert len(backend.requests) == 6


async def test_a_failure_is_not_kept(cache: AnswerCache) -> None:
    failing = ScriptedBackend(Reply("half", error=BackendError("broken"), times=1), Reply("whole"))
    cached = CachedBackend(failing, cache, "engine")
    with pytest.raises(BackendError):
        await collect(cached, request("a"))
    assert (await collect(cached, request("a")))[0] == "whole"


async def test_a_drawn_answer_is_refused(cache: AnswerCache) -> None:
    cached = CachedBackend(ScriptedBackend(Reply("x")), cache, "engine")
    with pytest.raises(ConfigError, match="temperature 0"):
        await collect(cached, request("a", sampling=SamplingParams(temperature=1.0)))


def test_a_file_that_is_no_cache_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_text("no database at all, but long enough to be looked at as one" * 50)
    with pytest.raises(ConfigError, match=r"answers\.sqlite is no cache"):
        AnswerCache(path)
