"""The servers under attack: one that all attacks must leave well, and one that is killed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from comp_llm_client import MAX_TOKENS
from helpers import bare_catalogue, own_home

from compllm.server import triton_server
from compllm.server.triton_state import ServerInfo

_START_S = 120.0  # at most, of a start
_USUAL_S = 5.0  # of a start on two cores that have nothing else to do
_USES = 3  # of one server that is killed: its supervisor waits longer before each further restart


@contextlib.contextmanager
def _tiny_home(home: Path, encoder_dir: Path) -> Iterator[None]:
    """Settings that fit the small engine, while the block runs."""
    with own_home(home, encoder_dir) as patch:
        patch.setenv("COMPLLM_CATALOGUE", str(bare_catalogue(home)))
        patch.setenv("COMPLLM_LIMITS_MAX_NODE_TOKENS", "16")
        patch.setenv("COMPLLM_LIMITS_MAX_ANSWER_TOKENS", str(MAX_TOKENS))
        yield


class _Machine:
    """How slow it is: 1 on free cores, more where others use them. Limits of time grow with it."""

    slowness = 1.0

    @contextlib.contextmanager
    def timed_start(self) -> Iterator[None]:
        start_s = time.monotonic()
        yield
        self.slowness = max(self.slowness, (time.monotonic() - start_s) / _USUAL_S)


@pytest.fixture(scope="session")
def _machine() -> _Machine:
    return _Machine()


@pytest.fixture
def slowness(_machine: _Machine) -> float:
    return _machine.slowness


@pytest.fixture(scope="session")
def server(
    engine_dir: Path,
    encoder_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    _machine: _Machine,
) -> Iterator[ServerInfo]:
    """One server of both models, for all attacks after which it must be as before."""
    with contextlib.ExitStack() as stack:
        with (
            _machine.timed_start(),
            _tiny_home(tmp_path_factory.mktemp("home"), encoder_dir),
            pytest.MonkeyPatch.context() as patch,
        ):
            # A random base is never sure of a plan: its draws would keep the engine busy for
            # seconds. For the start alone: the tests after it have their own settings.
            patch.setenv("COMPLLM_GENERATOR_NUM_DRAWS", "0")
            info = stack.enter_context(
                triton_server.running(
                    engine_dir, has_face=True, has_http=True, is_shared=False, timeout_s=_START_S
                )
            )
        yield info


class _Killable:
    """A server of `compllm up` with both models, in a home of its own."""

    def __init__(self, engine_dir: Path, home: Path, machine: _Machine) -> None:
        self.home = home
        self._machine = machine
        self._engine_dir = engine_dir
        self._num_uses = 0

    def up(self) -> ServerInfo:
        """The server, ready; every few uses a new one. The environment is the home's."""
        if self._num_uses % _USES == 0:
            triton_server.down()
        self._num_uses += 1
        with self._machine.timed_start():
            return triton_server.up(
                self._engine_dir, has_face=True, http_port=0, timeout_s=_START_S
            )


@pytest.fixture(scope="session")
def _killable(
    engine_dir: Path,
    encoder_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    _machine: _Machine,
) -> Iterator[_Killable]:
    home = tmp_path_factory.mktemp("home")
    with _tiny_home(home, encoder_dir):
        pass  # its files stay
    yield _Killable(engine_dir, home, _machine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPLLM_HOME", str(home))
        triton_server.down()


@pytest.fixture
def own_server(_killable: _Killable, monkeypatch: pytest.MonkeyPatch) -> ServerInfo:
    """The server of the user whose home it is: it may be killed, and its supervisor starts it
    again."""
    monkeypatch.setenv("COMPLLM_HOME", str(_killable.home))
    monkeypatch.setenv("COMPLLM_CATALOGUE", str(_killable.home / "experts.toml"))
    monkeypatch.setenv("COMPLLM_LIMITS_MAX_NODE_TOKENS", "16")
    monkeypatch.setenv("COMPLLM_LIMITS_MAX_ANSWER_TOKENS", str(MAX_TOKENS))
    return _killable.up()


@pytest.fixture
def again_s(own_server: ServerInfo, slowness: float) -> float:
    """Within these seconds there must be a right answer after a death: 10 on free cores."""
    return 10.0 * slowness
