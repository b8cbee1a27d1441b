"""What `CompLLM.connect` does: settings, catalogue, encoder and backend are put together.

The settings of the user's own server (`compllm up`) are the defaults of every client here, and a
client warns where its settings or its catalogue differ from the server's. A server that records
neither is accepted as it is. The path itself imports no backend and no server: this module does.
"""

from __future__ import annotations

import asyncio
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from compllm.backend import Backend
from compllm.catalogue import Catalogue
from compllm.config import Config, flat_values, load_config, variable_of
from compllm.errors import ConfigError, ConfigWarning, ServerError
from compllm.paths import encoder_dir
from compllm.routing.embed import Encoder, SentenceEncoder
from compllm.served import MODEL, PARAMETER, absolute, catalogue_of, difference_from, listed

T = TypeVar("T")

_DEFAULT_URL = "127.0.0.1:8001"
_TIMEOUT_S = 2.0  # the server was ready a moment ago


async def connect(
    make: Callable[[Backend, Encoder, Catalogue, Config], T], config: Config | None = None
) -> T:
    """What `make`, the class of the path, makes of the real parts: see `CompLLM.connect`."""
    from compllm.backends.select import connect_as_set

    config = load_client_config() if config is None else config
    if not isinstance(config, Config):
        raise ConfigError(f"config is a {type(config).__name__}: see compllm.load_config")
    catalogue = catalogue_of(config)
    url = config.server.url or await asyncio.to_thread(_local_url)
    backend = await connect_as_set(url, config.server, catalogue)
    try:
        await warn_of_another(url, catalogue)
        return make(backend, await SentenceEncoder.load(encoder_dir()), catalogue, config)
    except BaseException:
        await backend.aclose()
        raise


def load_client_config(
    path: str | Path | None = None, overrides: Mapping[str, object] | None = None
) -> Config:
    """`load_config` for a client: what no file, variable or option says is as the user's running
    server has it. Warns (ConfigWarning) where the environment says otherwise than that server: it
    may have been set for another purpose, or after the start. Raises ConfigError."""
    own = load_config(path, overrides)
    served = _local_settings(own.server.url)
    if not served:
        return own
    found = load_config(path, overrides, served=served)
    without = load_config(path, overrides, environ={}, served=served)
    if differences := list(_differences(found, without, served)):
        warnings.warn(
            "your environment has other settings than the running server, and they count here: "
            f"{listed(differences)}",
            ConfigWarning,
            stacklevel=2,
        )
    return found


async def warn_of_another(url: str, catalogue: Catalogue) -> None:
    """Warn (ConfigWarning) when the server at `url` works with another catalogue than this one.

    An OpenAI-compatible server has none; its adapters were looked for when connecting."""
    if "://" in url:
        return
    served = await _summary_at(url)
    difference = difference_from(served, catalogue) if served is not None else None
    if difference is not None:
        warnings.warn(f"the server at {url} {difference}", ConfigWarning, stacklevel=2)


def _local_url() -> str:
    """Where the user's embedded server listens, else where Triton does by default."""
    try:
        from compllm.server import triton_server
    except ImportError:  # only the client is installed
        return _DEFAULT_URL
    info = triton_server.status(wait_s=triton_server.RESTART_WAIT_S)
    return info.grpc_url if info else _DEFAULT_URL


def _differences(found: Config, without: Config, served: Mapping[str, object]) -> Iterator[str]:
    """The settings that the environment alone makes other than the server's. without: what they
    were without it. How to reach the server is the client's own; the catalogue is compared when it
    is connected, by what it holds."""
    plain = flat_values(without)
    for key, value in flat_values(found).items():
        theirs = served.get(key, plain[key])
        if key == "catalogue" or key.startswith("server.") or value in (plain[key], theirs):
            continue
        if key == "gate.file" and absolute(str(value)) == theirs:
            continue
        variable = variable_of(key)
        origin = variable if variable in os.environ else "COMPLLM_CONFIG"
        yield f"{key} = {value} ({origin}; the server has {theirs if theirs != '' else 'none'})"


def _local_settings(url: str) -> dict[str, object]:
    """Of the server that `up` started, if `url` is empty or means it; else none."""
    try:
        from compllm.server import triton_server
    except ImportError:  # only the client is installed
        return {}
    with suppress(ServerError):  # that it died is reported where it is asked
        info = triton_server.last_started()
        if info is not None and url in ("", info.grpc_url, f"localhost:{info.grpc_port}"):
            with suppress(ValueError):
                settings = json.loads(info.settings or "{}")
                return settings if isinstance(settings, dict) else {}
    return {}


async def _summary_at(url: str) -> dict[str, Any] | None:
    """None where the server does not have one."""
    import grpc
    from tritonclient.grpc import service_pb2

    from compllm.backends.channel import open_channel, stub_of

    async with open_channel(url) as channel:
        try:
            question = service_pb2.ModelConfigRequest(name=MODEL)
            answer = await stub_of(channel).ModelConfig(question, timeout=_TIMEOUT_S)
        except grpc.RpcError:
            return None
    with suppress(ValueError):
        summary = json.loads(answer.config.parameters[PARAMETER].string_value)
        return summary if isinstance(summary, dict) else None
    return None
