"""The deployment files, by what reads them: Helm, Kubernetes' schemas, hadolint, Compose."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from compllm.build_scripts.trtllm.image import IMAGES
from compllm.frontends.triton.comp_llm_metrics import FAMILIES as FACE_FAMILIES
from compllm.frontends.triton.comp_llm_metrics import LOAD
from compllm.frontends.triton.core_metrics import FAMILIES as ENGINE_FAMILIES
from compllm.paths import resource_dir

DEPLOY = resource_dir("build_scripts") / "deploy"
CHART = DEPLOY / "helm" / "compllm"
BIN = Path(sys.executable).parent
KUBERNETES = ("1.27", "1.32", "1.37")
NOT_CORE = {"PodMonitor"}  # of the Prometheus operator: no schema of Kubernetes

VALUES: dict[str, dict[str, Any]] = {
    "default": {},
    "serve": {"stage": "serve"},
    "everything": {
        "stage": "both",
        "replicas": 2,
        "gpus": 4,
        "settings": 'topology = "shared"\n[engine]\ntp = 4\n',
        "catalogue": "[base]\n",
        "config": "[limits]\nmax_nodes = 8\n",
        "build": {"checkpoint": "/data/checkpoints/llama", "args": ["--num-gpus", "4"]},
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        "affinity": {"podAntiAffinity": {}},
        "imagePullSecrets": [{"name": "registry"}],
        "storage": {"accessModes": ["ReadWriteMany"], "storageClassName": "nfs"},
        "autoscaling": {"enabled": True},
        "podMonitor": {"enabled": True},
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "podAnnotations": {"c": "d"},
    },
    "bare": {
        "stage": "both",
        "build": {"hasNetwork": False},
        "storage": {"existingClaim": "engines"},
        "networkPolicy": {"enabled": False},
        "disruptionBudget": {"enabled": False},
        "tolerations": [],
    },
}


def _rendered(values: dict[str, Any], name: str = "demo") -> dict[str, dict[str, Any]]:
    """Objects by kind and component, such as `NetworkPolicy/server`."""
    with helm.Chart.load(CHART) as chart:
        texts = chart.render(values, name=name, namespace="llm")
    found = {}
    for path, text in texts.items():
        if path.endswith(".yaml"):
            for each in filter(None, yaml.safe_load_all(text)):
                found[f"{each['kind']}/{each['metadata']['name']}"] = each
    return found


def _one(objects: dict[str, dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (each for each in objects.values() if each["kind"] == kind)
    return found


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_helm_finds_nothing_to_say(values: dict[str, Any]) -> None:
    report = helm.lint(CHART, values, strict=True, kube_version="v1.32.0")
    told = [each for each in report["messages"] if each["error"] != "icon is recommended"]
    assert (told, report["errors"]) == ([], [])


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field(values: dict[str, Any], version: str) -> None:
    core = [each for each in _rendered(values).values() if each["kind"] not in NOT_CORE]
    assert core
    for each in core:
        kubernetes_validate.validate(each, version, strict=True)  # raises for an unknown field


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"stage": "later"}, "'/stage'"),
        ({"gpus": 0}, "'/gpus'"),
        ({"replica": 2}, "'replica'"),
        ({"image": {"tag": ""}}, "'/image/tag'"),
        ({"storage": {"size": "much"}}, "'/storage/size'"),
        ({"autoscaling": {"metrics": []}}, "'/autoscaling/metrics'"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], told: str) -> None:
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmValuesError, match=told):
        chart.render(values)


def test_build_comes_before_the_servers_take_its_gpus() -> None:
    kinds = {each["kind"] for each in _rendered({}).values()}
    assert "Job" in kinds
    assert not kinds & {"Deployment", "Service", "PodDisruptionBudget"}
    assert "Job" not in {each["kind"] for each in _rendered({"stage": "serve"}).values()}


def test_changed_settings_make_another_job_and_restart_the_servers() -> None:
    before = _rendered({"stage": "both"})
    after = _rendered({"stage": "both", "settings": "num_gpus = 2\n"})
    assert _one(before, "Job")["metadata"]["name"] != _one(after, "Job")["metadata"]["name"]

    def key(objects: dict[str, dict[str, Any]]) -> object:
        return _one(objects, "Deployment")["spec"]["template"]["metadata"]["annotations"]

    assert key(before) != key(after)


def test_build_and_server_ask_for_the_same_gpus_of_the_same_pool() -> None:
    objects = _rendered(VALUES["everything"])
    pods = [_one(objects, kind)["spec"]["template"]["spec"] for kind in ("Job", "Deployment")]
    for pod in pods:
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 4
        assert pod["nodeSelector"] == VALUES["everything"]["nodeSelector"]
        assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_nobody_runs_as_root_or_reaches_out() -> None:
    objects = _rendered({"stage": "both"})
    for kind in ("Job", "Deployment"):
        pod = _one(objects, kind)["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    server = objects["NetworkPolicy/demo-compllm-server"]["spec"]
    assert server["egress"] == []
    assert [each["port"] for each in server["ingress"][0]["ports"]] == ["http", "grpc"]


def test_servers_have_probes_for_start_traffic_and_life() -> None:
    pod = _one(_rendered({"stage": "serve"}), "Deployment")["spec"]["template"]["spec"]
    triton = pod["containers"][0]
    paths = {name: triton[name]["httpGet"]["path"] for name in triton if name.endswith("Probe")}
    assert paths == {
        "startupProbe": "/v2/health/ready",
        "readinessProbe": "/v2/health/ready",
        "livenessProbe": "/v2/health/live",
    }


def test_scaling_follows_the_queue_in_front_of_the_engine() -> None:
    objects = _rendered(VALUES["everything"])
    metrics = _one(objects, "HorizontalPodAutoscaler")["spec"]["metrics"]
    found = [each["pods"]["metric"] for each in metrics]
    assert [(each["name"], each.get("selector")) for each in found] == [
        (LOAD, None),
        ("nv_trt_llm_request_metrics", {"matchLabels": {"request_type": "waiting"}}),
    ]
    assert {each["name"] for each in found} <= {*FACE_FAMILIES, *ENGINE_FAMILIES}
    assert "replicas" not in _one(objects, "Deployment")["spec"]


def test_long_release_names_stay_names() -> None:
    for each in _rendered({"stage": "both"}, name="a" * 53).values():
        assert len(each["metadata"]["name"]) <= 63


def test_hadolint_finds_nothing_to_say() -> None:
    done = subprocess.run(
        [BIN / "hadolint", "--no-color", DEPLOY / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("", 0)


def test_yamllint_finds_nothing_to_say() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "yamllint", "--strict", "--format", "parsable", "."],
        cwd=DEPLOY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.multi-gpu.yaml", "compose.common.yaml"])
def test_compose_files_follow_the_specification(name: str) -> None:
    text = (DEPLOY / name).read_text(encoding="utf-8")
    # Compose fills variables in before it reads the rest; what is left has to be without any.
    filled = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    assert "$" not in filled
    compose = PyCompose.from_yaml(filled)
    compose.validate()
    assert set(compose.service_names()) == {"build", "serve"}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("compose.yaml", {"device_ids": ["0"]}), ("compose.multi-gpu.yaml", {"count": "all"})],
)
def test_build_and_server_see_the_same_gpus(name: str, wanted: dict[str, Any]) -> None:
    services = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))["services"]
    for service in services.values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "capabilities": ["gpu"], **wanted}


def test_image_is_the_pinned_one_everywhere() -> None:
    tag = f"tritonserver:{IMAGES[0].tag}"
    assert f"ARG TRITON_IMAGE={tag}\n" in (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert f"TRITON_IMAGE:-{tag}}}" in (DEPLOY / "compose.common.yaml").read_text(encoding="utf-8")
    release = IMAGES[0].tag.partition("-")[0]
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert values["image"]["tag"] == release


@pytest.mark.parametrize("name", ["build.sh", "serve.sh"])
def test_scripts_are_shell_and_executable(name: str) -> None:
    subprocess.run(["bash", "-n", DEPLOY / name], check=True)
    assert (DEPLOY / name).stat().st_mode & 0o111


def test_server_without_a_repository_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [DEPLOY / "serve.sh"],
        env={"PATH": "/usr/bin:/bin", "COMPLLM_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "run build.sh" in done.stderr


def test_build_runs_its_three_steps_with_what_is_set(tmp_path: Path) -> None:
    """python3 is a stand-in that prints what it is asked to run."""
    (tmp_path / "python3").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "COMPLLM_HOME": "/data", "SETTINGS": "/in put.toml"}
    done = subprocess.run(
        [DEPLOY / "build.sh", "--gpu", "l4"], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "-m compllm.build_scripts.fetch_base",
        "-m compllm.build_scripts.build_trtllm --out /data/engines/trtllm "
        "--settings /in put.toml --gpu l4",
        "-m compllm.build_scripts.make_triton_repo --engines /data/engines/trtllm "
        "--out /data/repository",
    ]


def test_a_checkpoint_of_the_user_is_named_to_the_build_and_no_base_is_fetched(
    tmp_path: Path,
) -> None:
    (tmp_path / "python3").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "COMPLLM_HOME": "/data", "CHECKPOINT": "/in"}
    done = subprocess.run(
        [DEPLOY / "build.sh"], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[:2] == [
        "-m compllm.build_scripts.fetch_base --encoder-only",
        "-m compllm.build_scripts.build_trtllm --out /data/engines/trtllm --checkpoint /in",
    ]


def test_dry_run_downloads_nothing_and_makes_no_repository(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text('#!/bin/sh\necho "$2"\n')
    (tmp_path / "python3").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "COMPLLM_HOME": "/data"}
    command = [str(DEPLOY / "build.sh"), "--gpu", "l4", "--dry-run"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["compllm.build_scripts.build_trtllm"]


def test_the_entrypoint_of_the_image_stays() -> None:
    """It prepares CUDA's compatibility with older drivers."""
    compose = yaml.safe_load((DEPLOY / "compose.common.yaml").read_text(encoding="utf-8"))
    assert compose["services"]["build"]["command"] == ["build.sh"]
    assert all("entrypoint" not in service for service in compose["services"].values())
    objects = _rendered(VALUES["everything"])
    for kind, args in (("Job", ["build.sh", "--num-gpus", "4"]), ("Deployment", ["serve.sh"])):
        container = _one(objects, kind)["spec"]["template"]["spec"]["containers"][0]
        assert container["args"] == args
        assert "command" not in container


def test_a_catalogue_with_relative_paths_is_refused_by_the_chart() -> None:
    """Its text is mounted alone, so they would point nowhere; the shipped one has them."""
    shipped = (resource_dir("engines") / "experts.toml").read_text(encoding="utf-8")
    with helm.Chart.load(CHART) as chart:
        with pytest.raises(Exception, match=r'path = "adapters/chemistry.* is a relative path'):
            chart.render({"catalogue": shipped}, name="demo", namespace="llm")
        chart.render(
            {"catalogue": shipped.replace(' = "', ' = "/data/')}, name="demo", namespace="llm"
        )


def test_the_image_is_checked_without_a_gpu_and_keeps_what_it_was_tested_with() -> None:
    """A build has no libcuda, without which tensorrt_llm cannot be imported."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert "import tensorrt_llm" not in text
    assert "--config-settings=cmake.define.COMPLLM_EMBEDDED=OFF" in text
    assert "--no-build-isolation" in text  # else pip brings OpenVINO to build with
    assert "[gpu]" in text
    (pattern,) = re.findall(r'grep -iE "([^"]+)"', text)
    listed = "torch==2.9\ntensorrt_llm==1.2.1\ntensorrt==10.14\nnumpy==1.26\nrich==13.0\n"
    kept = [line for line in listed.splitlines() if re.match(pattern, line, re.IGNORECASE)]
    assert kept == listed.splitlines()[:-1]
