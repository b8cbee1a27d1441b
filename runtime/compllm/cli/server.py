"""`compllm up`, `down`, `status`: the embedded server from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compllm.cli.console import print_json
from compllm.cli.shared import found_config

if TYPE_CHECKING:
    from compllm.server.triton_server import ServerInfo


def _port(of: str) -> Any:
    return typer.Option(min=0, max=65535, metavar="PORT", help=f"{of}; 0 takes a free one.")


HttpOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        metavar="PORT",
        help="Open HTTP there, for curl; 0 takes a free one. Default: server.http_port. "
        "Without either HTTP stays closed.",
    ),
]
SettingsOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        callback=found_config,
        help="A TOML file of settings: the catalogue, limits and so on. Clients on this "
        "machine take them too. Default: the compllm.toml of this folder or of one above.",
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option(min=1.0, metavar="SECONDS", help="How long the server may take to be ready."),
]


def up(
    port: Annotated[int, _port("Of gRPC, which `compllm ask` uses")] = 0,
    http_port: HttpOption = None,
    metrics_port: Annotated[int, _port("Of the metrics, for Prometheus")] = 0,
    config: SettingsOption = None,
    timeout: TimeoutOption = 60.0,
) -> None:
    """Start the embedded server.

    It listens on loopback; any Triton client can ask its model comp_llm. What it needs (base model,
    encoder, engine with the catalogue's adapters) is made first where missing.
    """
    from compllm.backends.adapter_files import check_server_files
    from compllm.catalogue import load_catalogue
    from compllm.cli.prepare import prepare
    from compllm.config import load_config
    from compllm.server import triton_server

    settings = load_config(config)
    if http_port is None:
        http_port = settings.server.http_port or None
    # Before anything is built: the engine that is there may be the one of a live server.
    live = triton_server.check_up(
        grpc_port=port, http_port=http_port, metrics_port=metrics_port, has_face=True, config=config
    )
    if config is None and live is not None and live.config_file:
        config = Path(live.config_file)  # a server that is replaced keeps its settings
        settings = load_config(config)
        if http_port is None:
            http_port = settings.server.http_port or None
    check_server_files(settings.server)
    prepare(load_catalogue(Path(settings.catalogue) if settings.catalogue else None))
    server = triton_server.up(
        grpc_port=port or None,
        http_port=http_port,
        metrics_port=metrics_port or None,
        has_face=True,
        config=config,
        timeout_s=timeout,
    )
    _print_server(server)


def down() -> None:
    """Stop the server that `up` started."""
    from compllm.server import triton_server

    print("stopped" if triton_server.down() else "no server was running")


def status(
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report which server is running, and the models that it serves.

    Exit status 1 when there is none, or it is not ready.
    """
    from compllm.server import triton_server

    server = triton_server.status()
    if is_json:
        print_json({"is_running": server is not None, **(_facts(server) if server else {})})
    elif server is None:
        print("not running: start it with `compllm up`")
    else:
        _print_server(server)
    if server is None:
        raise typer.Exit(1)


def _facts(server: ServerInfo) -> dict[str, Any]:
    from compllm.server.health import models

    return {
        "grpc": server.grpc_url,
        "http": server.http_url,
        "metrics": server.metrics_url,
        "process": server.server_pid,
        "engine": server.engine_dir,
        "config": server.config_file,
        "log": server.log,
        "models": models(server),
    }


def _print_server(server: ServerInfo) -> None:
    facts = _facts(server)
    models = facts.pop("models")
    for name, value in facts.items():
        if value != "":
            print(f"{name:<8} {value}")
    for model in models:
        state = "ready" if model["is_ready"] else f"not ready ({model['state']})"
        print(f"model    {model['name']}: {state}")
