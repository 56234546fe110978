"""The manifests: Kubernetes and KubeRay accept them, and they keep strangers out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.deploy.files import DEPLOY, RUNS, kubernetes, pinned

VERSION = "1.33"
"""Of Kubernetes, whose schema the pods are held against."""


def _cluster() -> dict[str, Any]:
    cluster: dict[str, Any] = kubernetes("rayjob")["spec"]["rayClusterSpec"]
    return cluster


def _head() -> dict[str, Any]:
    template: dict[str, Any] = _cluster()["headGroupSpec"]["template"]
    return template


def _worker() -> dict[str, Any]:
    (group,) = _cluster()["workerGroupSpecs"]
    template: dict[str, Any] = group["template"]
    return template


def test_the_job_has_the_fields_of_a_rayjob_and_no_others() -> None:
    schema = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(kubernetes("rayjob"))


@pytest.mark.parametrize("template", [_head, _worker], ids=["head", "worker"])
def test_the_pods_have_the_fields_of_a_pod_and_no_others(template: Any) -> None:
    resource = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template()}
    kubernetes_validate.validate(resource, VERSION, strict=True)


def test_the_volume_is_a_valid_claim_and_the_head_keeps_its_runs_there() -> None:
    claim = kubernetes("runs-volume")
    kubernetes_validate.validate(claim, VERSION, strict=True)
    (volume,) = _head()["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (container,) = _head()["spec"]["containers"]
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": RUNS}]
    assert f"--run-dir {RUNS} " in kubernetes("rayjob")["spec"]["entrypoint"]


def test_everyone_has_the_token_from_the_secret() -> None:
    assert _cluster()["authOptions"] == {"mode": "token", "secretName": "drqn-ray-token"}
    source = {"secretKeyRef": {"name": "drqn-ray-token", "key": "auth_token"}}
    for template in (_head(), _worker()):
        (container,) = template["spec"]["containers"]
        environment = {entry["name"]: entry for entry in container["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        assert environment["RAY_AUTH_TOKEN"] == {"name": "RAY_AUTH_TOKEN", "valueFrom": source}


def test_nothing_is_reached_from_outside_the_cluster() -> None:
    head = _cluster()["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert head["enableIngress"] is False
    for template in (_head(), _worker()):
        spec = template["spec"]
        assert not spec.get("hostNetwork")
        assert not [
            port for container in spec["containers"] for port in container.get("ports", []) if "hostPort" in port
        ]
    kinds = [kubernetes(path.stem)["kind"] for path in (DEPLOY / "k8s").glob("*.yaml")]
    assert sorted(kinds) == ["PersistentVolumeClaim", "RayJob"]


@pytest.mark.parametrize("template", [_head, _worker], ids=["head", "worker"])
def test_no_container_runs_as_root_or_may_become_it(template: Any) -> None:
    spec = template()["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] >= 1000
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_images_and_operator_are_told_the_pinned_ray() -> None:
    ray = pinned("ray")
    assert _cluster()["rayVersion"] == ray
    images = [template["spec"]["containers"][0]["image"] for template in (_head(), _worker())]
    assert [image.rpartition(":")[2] for image in images] == [f"0.1.0-ray{ray}-gpu", f"0.1.0-ray{ray}-cpu"]


def test_a_gpu_head_stays_and_workers_come_and_go() -> None:
    cluster = _cluster()
    (group,) = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert group["minReplicas"] == 0 < group["maxReplicas"]
    head, worker = (template["spec"]["containers"][0]["resources"] for template in (_head(), _worker()))
    assert head["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in worker["limits"]
    for resources in (head, worker):  # what Ray counts on is what Kubernetes keeps for it
        assert resources["limits"] == resources["requests"]
    assert kubernetes("rayjob")["spec"]["shutdownAfterJobFinishes"] is True
