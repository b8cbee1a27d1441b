"""A deployable repository under the real tritonserver of this machine, which has no GPU."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import bare_catalogue
from repositories import engine_entry, write_catalogue, write_engines, write_shipped_engines

from compllm.backends.adapter_files import weights_in
from compllm.backends.tokenizer import Tokenizer
from compllm.build_scripts.make_triton_repo import Inputs, make_embedded, make_repository
from compllm.build_scripts.repository import core
from compllm.build_scripts.repository.contract import differences
from compllm.build_scripts.repository.warm_up import WarmUp
from compllm.build_scripts.trtllm.record import AdapterEntry
from compllm.build_scripts.trtllm.settings import Topology
from compllm.catalogue import load_catalogue
from compllm.config import load_config
from compllm.formats.checkpoint import validate_checkpoint
from compllm.formats.manifest import Manifest
from compllm.routing.embed import SentenceEncoder
from compllm.server import triton_files

pytestmark = pytest.mark.triton

WAIT_S = 120.0


@pytest.fixture
async def repository(tiny_checkpoint: Path, encoder_dir: Path, tmp_path: Path) -> Path:
    """The base with its adapters, and a full fine-tune beside it on the same GPU."""
    shape = validate_checkpoint(tiny_checkpoint)
    entries = [
        engine_entry(shape, max_lora_rank=16),
        engine_entry(shape, "tensorrt_llm_chemistry", "chemistry"),
    ]
    adapters = [AdapterEntry("biology", 12, 16, "b")]
    write_engines(tmp_path / "engines", tiny_checkpoint, entries, adapters)
    catalogue = write_catalogue(tmp_path)
    encoder = await SentenceEncoder.load(encoder_dir)  # whose id the router insists on
    catalogue.write_text(catalogue.read_text().replace("sha256:0", encoder.id))
    return make_repository(Inputs(tmp_path / "engines", catalogue), tmp_path / "repository")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _served(models: Path, scratch: Path) -> Iterator[int]:
    """Triton with the options of launch.sh that this machine can take, its HTTP port."""
    binary = triton_files.find_tritonserver()
    backends = triton_files.make_backends(binary, scratch / "backends")
    port, prefix = _free_port(), f"repository-{scratch.name}-"
    command = [
        binary,
        f"--model-repository={models}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        "--disable-auto-complete-config",
        "--exit-on-error=false",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
        "--exit-timeout-secs=5",
    ]
    with open(scratch / "log", "wb") as log:
        server = subprocess.Popen(
            command, env=triton_files.environment(binary), stdout=log, stderr=log
        )
        try:
            yield port
        finally:
            server.terminate()
            server.wait(30)


def _ask(port: int, method: str, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def _loaded(port: int, last: str = "comp_llm") -> dict[str, dict[str, str]]:
    """State and reason of every model, once none is loading any more."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            found = {each["name"]: each for each in _ask(port, "POST", "/v2/repository/index")}
        except OSError:
            found = {}
        # A model whose configuration is refused has no state at all; the face takes longest.
        states = {name: each.get("state") for name, each in found.items()}
        if states.get(last) in ("READY", "UNAVAILABLE") and "LOADING" not in states.values():
            return found
        time.sleep(0.2)
    pytest.fail("the server did not finish loading")


def test_a_server_answers_the_warm_up_before_it_is_ready(
    engine_dir: Path, encoder_dir: Path, tmp_path: Path
) -> None:
    """The same requests as for a GPU's engine, at the embedded one: Triton takes their form."""
    out = make_embedded(engine_dir, tmp_path / "repository")
    shutil.rmtree(out / "models" / "comp_llm")
    folder = out / "models" / "tensorrt_llm"
    config = core.parse((folder / "config.pbtxt").read_text())
    adapters = [each.task_id for each in Manifest.read(engine_dir).adapters]
    weights = weights_in(engine_dir)
    assert weights is not None
    warm_up = WarmUp(
        load_catalogue(bare_catalogue(tmp_path)),
        load_config(environ={}),
        Tokenizer.from_dir(engine_dir),
        weights,
    )
    warm_up.add(config, folder, adapters)
    (folder / "config.pbtxt").write_text(core.render(config))
    with _served(out / "models", tmp_path) as port:
        models = _loaded(port, "tensorrt_llm")
    log = (tmp_path / "log").read_text()
    assert models["tensorrt_llm"]["state"] == "READY", log
    assert "warmup error" not in log
    assert len(config.model_warmup) == 2 + len(adapters)


def test_everything_that_needs_no_gpu_loads_and_the_rest_lacks_only_its_backend(
    repository: Path, tmp_path: Path
) -> None:
    with _served(repository / "models", tmp_path) as port:
        models = _loaded(port)
        served = _ask(port, "GET", "/v2/models/comp_llm/config")
    assert set(models) == {"comp_llm", "tensorrt_llm", "tensorrt_llm_chemistry"}
    assert models["comp_llm"]["state"] == "READY"
    assert served["model_transaction_policy"]["decoupled"] is True
    for name in ("tensorrt_llm", "tensorrt_llm_chemistry"):
        assert models[name]["state"] == "UNAVAILABLE"
        assert "unable to find backend library for backend 'tensorrtllm'" in models[name]["reason"]


@pytest.mark.parametrize("topology", ["shared", "per-expert"])
def test_comp_llm_of_the_shipped_catalogue_becomes_ready(
    topology: Topology, base_dir: Path, tmp_path: Path
) -> None:
    """It did not: the router's head was not in the repository."""
    write_shipped_engines(tmp_path / "engines", base_dir, topology)
    made = make_repository(Inputs(tmp_path / "engines"), tmp_path / "repository")
    with _served(made / "models", tmp_path) as port:
        models = _loaded(port)
    assert models["comp_llm"]["state"] == "READY", (tmp_path / "log").read_text()


def test_a_configuration_that_triton_refuses_does_not_get_as_far_as_its_backend(
    repository: Path, tmp_path: Path
) -> None:
    """Else the test above would prove nothing."""
    config = repository / "models" / "tensorrt_llm" / "config.pbtxt"
    parsed = core.parse(config.read_text())
    parsed.input[0].data_type = 0
    config.write_text(core.render(parsed))
    assert len(differences(parsed)) == 1
    with _served(repository / "models", tmp_path) as port:
        models = _loaded(port)
    assert "state" not in models["tensorrt_llm"]
    assert "must specify 'data_type'" in (tmp_path / "log").read_text()
    assert "backend library" in models["tensorrt_llm_chemistry"]["reason"]
