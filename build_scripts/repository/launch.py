"""The command that serves a repository: launch.sh beside the models.

Three ways, as the backend has them. One process: every engine has one rank, all of them on the
first GPU. Leader: one engine of several ranks, a process for each; only the first one serves.
Orchestrator: several engines on several GPUs, their processes spawned by the one server.
Upstream's launch_triton_server.py starts its processes and returns, which would end a container;
this is what it runs, in the foreground.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from compllm.build_scripts.repository.core import CoreModel

WORKERS = "workers"  # folder of the models that the other ranks of a leader load
Mode = Literal["single", "leader", "orchestrator"]

_SERVER = "/opt/tritonserver/bin/tritonserver"
# Open MPI binds a process to a core by itself, and with it every thread of the server.
_MPIRUN = "mpirun --allow-run-as-root --bind-to none"
# HTTP is open here, unlike in `compllm up`: the container's health check and the chart's probes ask
# it.
_PORTS = (
    "--grpc-port=${GRPC_PORT:-8001}",
    "--http-port=${HTTP_PORT:-8000}",
    "--metrics-port=${METRICS_PORT:-8002}",
)
_HEAD = """\
#!/bin/bash
# Serves the models beside this file. Made by make_triton_repo.py.
# Ports: GRPC_PORT (8001), HTTP_PORT (8000), METRICS_PORT (8002). Further arguments go to Triton.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export COMPLLM_SERVER_URL="127.0.0.1:${GRPC_PORT:-8001}"  # where comp_llm finds the engines
# Engines of another image or GPU are refused here, in one line, not by a crash while they load.
compllm doctor --gpu --engines @ENGINES@ >&2
"""


def mode(models: Sequence[CoreModel]) -> Mode:
    """Which way these engines must be served."""
    gpus = {gpu for model in models for gpu in model.gpu_ids}
    if gpus == {0}:
        return "single"
    return "leader" if len(models) == 1 else "orchestrator"


def script(models: Sequence[CoreModel], engines: Path) -> str:
    """launch.sh for these engines, in the directory `engines`."""
    way = mode(models)
    lines = [_HEAD.replace("@ENGINES@", shlex.quote(str(engines)))]
    if way == "orchestrator":
        gpus = sorted({gpu for model in models for gpu in model.gpu_ids})
        lines.append("export TRTLLM_ORCHESTRATOR=1 TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES=1\n")
        # Spawned workers have the GPUs to themselves: Triton's own pools would be in their way.
        pools = [f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(gpus[-1] + 1)]
        more = ["--pinned-memory-pool-byte-size=0", "--enable-peer-access=false", *pools]
        lines.append(f"exec {_MPIRUN} -n 1 {_server(0, more=more)}\n")
    elif way == "leader":
        (model,) = models
        own = ["--model-control-mode=explicit", f"--load-model={shlex.quote(model.name)}"]
        ranks = [_server(0)]
        ranks += [_server(rank, WORKERS, own) for rank in range(1, len(model.gpu_ids))]
        lines.append(f"exec {_MPIRUN} -n 1 " + " : -n 1 ".join(ranks) + "\n")
    else:
        lines.append(f"exec {_server(0)}\n")
    return "".join(lines)


def _server(rank: int, folder: str = "models", more: Sequence[str] = ()) -> str:
    # The configurations are complete: Triton is not to complete them.
    fixed = ["--disable-auto-complete-config", "--exit-timeout-secs=30"]
    memory = f"--backend-config=python,shm-region-prefix-name=rank{rank}_"
    arguments = [
        _SERVER,
        f'--model-repository="$here/{folder}"',
        *_PORTS,
        *fixed,
        memory,
        *more,
        '"$@"',
    ]
    return " ".join(arguments)
