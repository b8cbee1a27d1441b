"""The settings and the catalogue of a running server: a client takes them, or warns of another.

The user's own server (`compllm up`) keeps its settings in its state file; they are the defaults of
every client here. Any server's model `comp_llm` has a summary of its catalogue among its
parameters; a client compares its own with that. A server without either is accepted as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from compllm.catalogue import Catalogue, load_catalogue
from compllm.config import Config, flat_values, load_config, variable_of
from compllm.errors import ConfigWarning, ServerError

MODEL = "comp_llm"
PARAMETER = "catalogue"  # of that model
_TIMEOUT_S = 2.0  # the server was ready a moment ago
_SHOWN = 8  # experts that a warning names


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
            f"{_listed(differences)}",
            ConfigWarning,
            stacklevel=2,
        )
    return found


def settings_of(config: Config, catalogue: Catalogue) -> str:
    """A server's settings for its state file: JSON, with paths that hold in any directory."""
    server = replace(
        config.server,
        url="",  # the server's own way to the engine
        tokenizer=_absolute(config.server.tokenizer),
        adapters_dir=_absolute(config.server.adapters_dir),
    )
    gate = replace(config.gate, file=_absolute(config.gate.file))
    whole = replace(config, server=server, gate=gate, catalogue=str(catalogue.path.resolve()))
    return json.dumps(flat_values(whole))


def summary_of(catalogue: Catalogue) -> str:
    """What a server says of its catalogue: the experts' adapter ids, and a hash of all that decides
    an answer. JSON."""
    head = catalogue.router.head
    decisive = (
        catalogue.base,
        catalogue.experts,
        catalogue.template,
        catalogue.examples,
        catalogue.router.threshold,
        catalogue.router.encoder,
        hashlib.sha256(head.read_bytes()).hexdigest() if head and head.is_file() else "",
        catalogue.generator and catalogue.generator.id,
        catalogue.aggregator and catalogue.aggregator.id,
    )
    experts = {expert.name: expert.adapter_id for expert in catalogue.experts}
    digest = hashlib.sha256(repr(decisive).encode()).hexdigest()
    return json.dumps({"experts": experts, "sha256": digest})


async def warn_of_another(url: str, catalogue: Catalogue) -> None:
    """Warn (ConfigWarning) when the server at `url` works with another catalogue than this one."""
    served = await _summary_at(url)
    difference = difference_from(served, catalogue) if served is not None else None
    if difference is not None:
        warnings.warn(f"the server at {url} {difference}", ConfigWarning, stacklevel=2)


def difference_from(served: Mapping[str, Any], catalogue: Catalogue) -> str | None:
    """How a catalogue differs from the summary of a server's, to follow 'the server at URL'."""
    own = json.loads(summary_of(catalogue))
    if served.get("sha256") == own["sha256"]:
        return None
    theirs, ours = served.get("experts"), own["experts"]
    if not isinstance(theirs, dict):
        return None
    where = f"your catalogue ({catalogue.path})"
    if theirs.keys() != ours.keys():
        return f"serves the experts {_listed(theirs)}; {where} has {_listed(ours)}"
    others = [name for name in ours if theirs[name] != ours[name]]
    if others:
        return f"has other adapters than {where} for {_listed(others)}"
    return f"differs from {where} in its prompts, examples, roles, models or router"


def _differences(found: Config, without: Config, served: Mapping[str, object]) -> Iterator[str]:
    """The settings that the environment alone makes other than the server's. without: what they
    were without it. How to reach the server is the client's own; the catalogue is compared when it
    is connected, by what it holds."""
    plain = flat_values(without)
    for key, value in flat_values(found).items():
        theirs = served.get(key, plain[key])
        if key == "catalogue" or key.startswith("server.") or value in (plain[key], theirs):
            continue
        if key == "gate.file" and _absolute(str(value)) == theirs:
            continue
        variable = variable_of(key)
        origin = variable if variable in os.environ else "COMPLLM_CONFIG"
        yield f"{key} = {value} ({origin}; the server has {theirs if theirs != '' else 'none'})"


def _local_settings(url: str) -> dict[str, object]:
    """Of the server that `up` started, if `url` is empty or means it; else none."""
    try:
        from compllm.embedded import tritonserver
    except ImportError:  # only the client is installed
        return {}
    with suppress(ServerError):  # that it died is reported where it is asked
        info = tritonserver.last_started()
        if info is not None and url in ("", info.grpc_url, f"localhost:{info.grpc_port}"):
            with suppress(ValueError):
                settings = json.loads(info.settings or "{}")
                return settings if isinstance(settings, dict) else {}
    return {}


async def _summary_at(url: str) -> dict[str, Any] | None:
    """None where the server does not have one."""
    import grpc
    from tritonclient.grpc import service_pb2

    from compllm.channel import open_channel, stub_of

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


def catalogue_of(config: Config) -> Catalogue:
    """The catalogue that the settings name. Raises ConfigError."""
    return load_catalogue(config.catalogue or None)


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if path else ""


def _listed(names: Any) -> str:
    shown = sorted(names)[:_SHOWN]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
