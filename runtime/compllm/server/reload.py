"""Load the model `comp_llm` of the user's server again, with its settings and catalogue as they are
now: an expert that was added or removed is served without a restart.

Triton serves the old one until the new one is ready, and keeps it where that fails. The engine,
`tensorrt_llm`, goes on: adapters that it lacks come with the first request that names them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compllm.errors import ServerError
from compllm.server import triton_process
from compllm.server.health import NoAnswer, admin_key, asked
from compllm.server.triton_files import FACE_MODEL, fill_config
from compllm.server.triton_server import lock, settings_hash
from compllm.server.triton_state import HOST, ServerInfo, write_state

_TIMEOUT_S = 600.0  # Triton would go on where we gave up


def reload_face(info: ServerInfo) -> ServerInfo:
    """Return when the server serves what its settings file says now.

    The state file then says so too. Raises ConfigError for settings that are wrong, and ServerError
    with Triton's reason; the server then serves what it did before.
    """
    config = Path(info.config_file) if info.config_file else None
    with lock():
        settings, summary = triton_process.face_settings(config)
        repository = Path(info.log).parent / "models"
        values = {
            "config_file": info.config_file,
            "server_url": f"{HOST}:{info.grpc_port}",
            "catalogue": summary,
        }
        written = repository / FACE_MODEL / "config.pbtxt"
        before = written.read_text(encoding="utf-8")
        try:
            fill_config(repository, FACE_MODEL, values)
            _load(info)
        except BaseException:
            written.write_text(before, encoding="utf-8")
            raise
        made = replace(
            info,
            engine_hash=triton_process.engine_hash(Path(info.engine_dir)),
            settings=settings,
            settings_hash=settings_hash(config),
        )
        write_state(made)
    return made


def _load(info: ServerInfo) -> None:
    import grpc

    try:
        with asked(info) as (stub, messages):
            question = messages.RepositoryModelLoadRequest(model_name=FACE_MODEL)
            stub.RepositoryModelLoad(question, timeout=_TIMEOUT_S, metadata=admin_key(info))
    except (NoAnswer, grpc.RpcError) as error:
        reason = error.details() if isinstance(error, grpc.RpcError) else error
        raise ServerError(f"{info.grpc_url} did not load {FACE_MODEL} again: {reason}") from error
