"""`comp_llm` of a running server is loaded again; a refusal changes nothing. No real Triton."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from compllm.errors import ServerError
from compllm.server.reload import reload_face
from compllm.server.triton_state import ADMIN_HEADER, ServerInfo, read_state

KEY = "secret"


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers each request to load a model, as `reason` says."""

    def __init__(self) -> None:
        self.reason = ""
        self.port = 0
        self.loaded: list[str] = []

    def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        keys = {name: value for name, value in context.invocation_metadata()}
        assert keys[f"triton-grpc-protocol-{ADMIN_HEADER}"] == KEY
        self.loaded.append(request.model_name)
        if self.reason:
            context.abort(grpc.StatusCode.INTERNAL, self.reason)
        return service_pb2.RepositoryModelLoadResponse()


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    server, fake = grpc.server(ThreadPoolExecutor(1)), FakeTriton()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    fake.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield fake
    server.stop(None).wait()


@pytest.fixture
def info(triton: FakeTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerInfo:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    (tmp_path / "run" / "server" / "models" / "comp_llm").mkdir(parents=True)
    (tmp_path / "run" / "server" / "models" / "comp_llm" / "config.pbtxt").write_text("old")
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "manifest.json").write_text("{}")
    log = tmp_path / "run" / "server" / "server.log"
    return ServerInfo(
        *(1, 1, 1, "id", triton.port, 0, 7003, str(log)),
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
    assert triton.loaded == ["comp_llm"]
    assert f'string_value: "127.0.0.1:{triton.port}"' in config_of(info)
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
