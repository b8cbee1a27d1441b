"""`comp_llm` of a running server is loaded again; a refusal changes nothing. No real Triton."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from compllm.errors import ServerError
from compllm.server.reload import reload_face
from compllm.server.triton_state import ADMIN_HEADER, ServerInfo, read_state

KEY = "secret"


class FakeTriton(HTTPServer):
    """Answers each request to load a model, as `reason` says."""

    reason = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.loaded: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: FakeTriton

    def do_POST(self) -> None:
        assert self.headers[ADMIN_HEADER] == KEY
        self.server.loaded.append(self.path)
        content = json.dumps({"error": self.server.reason}).encode() if self.server.reason else b""
        self.send_response(400 if self.server.reason else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    with FakeTriton() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def info(triton: FakeTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerInfo:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    (tmp_path / "run" / "server" / "models" / "comp_llm").mkdir(parents=True)
    (tmp_path / "run" / "server" / "models" / "comp_llm" / "config.pbtxt").write_text("old")
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "manifest.json").write_text("{}")
    log = tmp_path / "run" / "server" / "server.log"
    return ServerInfo(
        *(1, 1, 1, "id", 7001, triton.server_port, 7003, str(log)),
        engine_dir=str(tmp_path / "engine"),
        has_face=True,
        admin_key=KEY,
    )


def config_of(info: ServerInfo) -> str:
    return (Path(info.log).parent / "models" / "comp_llm" / "config.pbtxt").read_text()


def test_a_reload_writes_the_models_config_and_the_state(
    triton: FakeTriton, info: ServerInfo
) -> None:
    made = reload_face(info)
    assert triton.loaded == ["/v2/repository/models/comp_llm/load"]
    assert 'string_value: "127.0.0.1:7001"' in config_of(info)
    assert "chemistry" in config_of(info)
    assert made.settings_hash
    assert made.engine_hash
    state = read_state()
    assert state is not None
    assert (state.settings_hash, state.settings) == (made.settings_hash, made.settings)


def test_a_refused_reload_says_why_and_changes_nothing(
    triton: FakeTriton, info: ServerInfo
) -> None:
    triton.reason = "failed to load 'comp_llm'"
    with pytest.raises(ServerError, match="did not load comp_llm again: failed to load"):
        reload_face(info)
    assert config_of(info) == "old"
    assert read_state() is None
