"""The Kubernetes manifest: every document fits its schema, and the documents fit each other and the code."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from imray.settings import Settings

_ROOT = Path(__file__).parents[2]
_K8S = _ROOT / "k8s"
_KUSTOMIZATION = _K8S / "kustomization.yaml"
_KUBERNETES = "1.33"
"""The oldest version that is still in support; older fields are in the newer ones too."""
_NOT_SETTINGS = {"IMRAY_DATA", "IMRAY_SHARDS", "IMRAY_HOST", "IMRAY_PORT", "IMRAY_JWT_KEY_FILE"}
"""Read by `imray up`; the other IMRAY_ variables are fields of Settings."""


def _documents() -> list[tuple[str, dict[str, Any]]]:
    """(file, document) of all YAML files but the kustomization, which is no object of the cluster."""
    return [
        (path.name, document)
        for path in sorted(_K8S.glob("*.yaml"))
        if path != _KUSTOMIZATION
        for document in yaml.safe_load_all(path.read_text())
    ]


_DOCUMENTS = _documents()
_PLAIN = [d for d in _DOCUMENTS if not d[1]["apiVersion"].startswith("ray.io/")]
_RAY = [d for d in _DOCUMENTS if d[1]["apiVersion"].startswith("ray.io/")]


def _ids(documents: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [f"{file}:{d['kind']}/{d['metadata']['name']}" for file, d in documents]


def _one(kind: str, name: str) -> dict[str, Any]:
    (found,) = [d for _, d in _DOCUMENTS if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


def _cluster() -> dict[str, Any]:
    return _one("RayCluster", "imray")["spec"]


def _ray_templates() -> dict[str, dict[str, Any]]:
    """Pod templates of the Ray nodes, by component."""
    groups = [_cluster()["headGroupSpec"], *_cluster()["workerGroupSpecs"]]
    return {g["template"]["metadata"]["labels"]["app.kubernetes.io/component"]: g["template"] for g in groups}


def _pod_templates() -> dict[str, dict[str, Any]]:
    return {**_ray_templates(), "up": _one("Job", "imray-up")["spec"]["template"]}


def _selected(selector: dict[str, str]) -> set[str]:
    """Components whose pods carry these labels."""
    return {c for c, t in _pod_templates().items() if selector.items() <= t["metadata"]["labels"].items()}


def _settings() -> dict[str, str]:
    return _one("ConfigMap", "imray-settings")["data"]


def _container(template: dict[str, Any]) -> dict[str, Any]:
    (container,) = template["spec"]["containers"]
    return container


def _close(schema: Any) -> Any:
    """The schema, refusing fields that it does not name: an API server drops those without an error."""
    if isinstance(schema, list):
        return [_close(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _close(value) for key, value in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if named and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    return closed


@cache
def _crd_schema(folder: Path, kind: str, version: str) -> dict[str, Any]:
    text = (folder / "kuberay-crds" / f"ray.io_{kind.lower()}s.yaml").read_text()
    crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # 18,000 lines: the C one if there
    (found,) = [v for v in crd["spec"]["versions"] if v["name"] == version]
    schema = _close(found["schema"]["openAPIV3Schema"])
    # the API server's own part of every object, which a CRD leaves open
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _check_ray(document: dict[str, Any], folder: Path) -> None:
    schema = _crd_schema(folder, document["kind"], document["apiVersion"].partition("/")[2])
    jsonschema.Draft202012Validator(schema).validate(document)


@pytest.mark.parametrize("document", [d for _, d in _PLAIN], ids=_ids(_PLAIN))
def test_plain_kind_fits_the_schema(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, _KUBERNETES, strict=True)


@pytest.mark.parametrize("document", [d for _, d in _RAY], ids=_ids(_RAY))
def test_ray_kind_fits_the_crd(document: dict[str, Any], test_data: Path) -> None:
    _check_ray(document, test_data)


def test_a_misspelt_field_of_a_plain_kind_is_refused() -> None:
    broken = copy.deepcopy(_one("Service", "imray-gateway"))
    broken["spec"]["ports"][0]["targetprot"] = broken["spec"]["ports"][0].pop("targetPort")
    with pytest.raises(kubernetes_validate.ValidationError, match="targetprot"):
        kubernetes_validate.validate(broken, _KUBERNETES, strict=True)


@pytest.mark.parametrize("deep", [False, True])
def test_a_misspelt_field_of_a_ray_kind_is_refused(deep: bool, test_data: Path) -> None:
    broken = copy.deepcopy(_one("RayCluster", "imray"))
    if deep:
        _container(broken["spec"]["workerGroupSpecs"][0]["template"])["volumeMount"] = []
    else:
        broken["spec"]["rayversion"] = broken["spec"].pop("rayVersion")
    with pytest.raises(jsonschema.ValidationError, match=r"volumeMount|rayversion"):
        _check_ray(broken, test_data)


def test_a_value_of_the_wrong_type_is_refused(test_data: Path) -> None:
    broken = copy.deepcopy(_one("RayCluster", "imray"))
    broken["spec"]["headGroupSpec"]["rayStartParams"]["metrics-export-port"] = 8090
    with pytest.raises(jsonschema.ValidationError, match="8090"):
        _check_ray(broken, test_data)


def test_kustomization_lists_every_file_and_no_other() -> None:
    listed = yaml.safe_load(_KUSTOMIZATION.read_text())["resources"]
    assert sorted(listed) == sorted({file for file, _ in _DOCUMENTS})
    assert len(listed) == len(set(listed))


def test_images_are_one_and_of_the_package_version() -> None:
    (image,) = yaml.safe_load(_KUSTOMIZATION.read_text())["images"]
    version = re.search(r'^version = "(.+)"$', (_ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert image["newTag"] == version[1]
    specs = [t["spec"] for t in _pod_templates().values()]
    used = {c["image"] for s in specs for c in [*s["containers"], *s.get("initContainers", [])]}
    assert used == {f"{image['name']}:{image['newTag']}"}


def test_ray_version_is_the_pinned_one() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (_K8S / "requirements.lock").read_text(), re.MULTILINE))
    assert _cluster()["rayVersion"] == pins["ray"]


@pytest.mark.parametrize("component", ["ray-head", "ray-worker"])
def test_log_and_key_are_mounted_where_the_settings_say(component: str) -> None:
    template = _ray_templates()[component]
    mounts = {m["name"]: m for m in _container(template)["volumeMounts"]}
    volumes = {v["name"]: v for v in template["spec"]["volumes"]}
    assert mounts["log"]["mountPath"] == _settings()["IMRAY_DATA"]
    assert not mounts["log"].get("readOnly")
    claim = _one("PersistentVolumeClaim", volumes["log"]["persistentVolumeClaim"]["claimName"])
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    secret = _one("Secret", volumes["jwt"]["secret"]["secretName"])
    folder, _, file = _settings()["IMRAY_JWT_KEY_FILE"].rpartition("/")
    assert mounts["jwt"]["mountPath"] == folder
    assert file in secret["stringData"]
    assert _container(template)["envFrom"] == [{"configMapRef": {"name": "imray-settings"}}]


def test_the_placeholder_key_would_be_refused() -> None:
    """The gateway demands 32 bytes: a forgotten placeholder must not become a key that everybody knows."""
    assert len(_one("Secret", "imray-jwt")["stringData"]["jwt.key"]) < 32


def test_settings_are_known_and_of_the_right_type() -> None:
    known = {f"IMRAY_{f.name.upper()}" for f in fields(Settings)} | _NOT_SETTINGS
    assert set(_settings()) <= known
    Settings.from_env(_settings())


def test_busy_conversations_turn_hot_by_themselves() -> None:
    settings = Settings.from_env({k: str(v) for k, v in _one("ConfigMap", "imray-settings")["data"].items()})
    assert settings.hot_rate_per_s > 0
    assert settings.hot_partitions > 1


def test_the_gateway_can_be_reached() -> None:
    service = _one("Service", "imray-gateway")
    assert _selected(service["spec"]["selector"]) == {"ray-worker"}
    container = _container(_ray_templates()["ray-worker"])
    (port,) = service["spec"]["ports"]
    named = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert named[port["targetPort"]] == port["port"] == int(_settings()["IMRAY_PORT"])
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": port["targetPort"]}
    assert _settings()["IMRAY_HOST"] == "0.0.0.0"


def test_no_port_of_ray_is_the_gateways() -> None:
    """KubeRay exports metrics on 8080 unless told otherwise."""
    for group in [_cluster()["headGroupSpec"], *_cluster()["workerGroupSpecs"]]:
        ports = {p["name"]: str(p["containerPort"]) for p in _container(group["template"])["ports"]}
        assert group["rayStartParams"]["metrics-export-port"] == ports["metrics"] != _settings()["IMRAY_PORT"]


def test_no_service_is_named_imray() -> None:
    """Kubernetes would put IMRAY_PORT=tcp://... into the pods, which `imray up` reads as its port."""
    assert "imray" not in {d["metadata"]["name"] for _, d in _DOCUMENTS if d["kind"] == "Service"}
    for template in _pod_templates().values():
        assert template["spec"]["enableServiceLinks"] is False


def _selectors() -> Iterator[tuple[str, dict[str, str], set[str]]]:
    ray = {"ray-head", "ray-worker"}
    expected = {"imray-ray": ray, "imray-gateway": {"ray-worker"}, "imray-head-jobs": {"ray-head"}}
    for name, components in expected.items():
        yield f"policy {name}", _one("NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"], components
    peers = {"imray-ray": ray, "imray-head-jobs": {"up"}}
    for name, components in peers.items():
        (rule,) = _one("NetworkPolicy", name)["spec"]["ingress"]
        (peer,) = rule["from"]
        yield f"peer of {name}", peer["podSelector"]["matchLabels"], components
    yield "budget", _one("PodDisruptionBudget", "imray-ray")["spec"]["selector"]["matchLabels"], ray


@pytest.mark.parametrize(("selector", "expected"), [s[1:] for s in _selectors()], ids=[s[0] for s in _selectors()])
def test_selectors_match_the_pods(selector: dict[str, str], expected: set[str]) -> None:
    assert _selected(selector) == expected


@pytest.mark.parametrize("component", ["ray-head", "ray-worker", "up"])
def test_pods_are_bounded_and_without_root(component: str) -> None:
    spec = _pod_templates()[component]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert set(resources["limits"]) == {"cpu", "memory"}


def test_actors_fill_less_than_half_of_the_cpus() -> None:
    """Above half Ray fills nodes to the brim, and the gateway that must run on that node finds no room."""
    settings = Settings.from_env(_settings())
    groups = [(1, _cluster()["headGroupSpec"]), *((g["replicas"], g) for g in _cluster()["workerGroupSpecs"])]
    nodes = sum(n for n, _ in groups)
    cpus = sum(n * float(_container(g["template"])["resources"]["limits"]["cpu"]) for n, g in groups)
    shards = int(_settings()["IMRAY_SHARDS"])
    wanted = shards * settings.shard_num_cpus + nodes * settings.gateway_num_cpus + settings.history_num_cpus
    assert wanted <= cpus / 2


def test_the_job_starts_imray_once_all_nodes_are_there() -> None:
    spec = _one("Job", "imray-up")["spec"]["template"]["spec"]
    (wait,), (up,) = spec["initContainers"], spec["containers"]
    replicas = sum(g["replicas"] for g in _cluster()["workerGroupSpecs"])
    for container in (wait, up):
        env = {e["name"]: e.get("value") for e in container["env"]}
        assert env["RAY_NODES"] == str(1 + replicas)
        assert env["RAY_AUTH_MODE"] == _cluster()["authOptions"]["mode"] == "token"
        (token,) = [e for e in container["env"] if e["name"] == "RAY_AUTH_TOKEN"]
        assert token["valueFrom"]["secretKeyRef"]["name"] == _one("RayCluster", "imray")["metadata"]["name"]
    command = up["args"]
    assert command[:2] == ["imray", "up"]
    assert command[command.index("--data") + 1] == _settings()["IMRAY_DATA"]
    assert command[command.index("--shards") + 1] == _settings()["IMRAY_SHARDS"]
