from typing import Any

import pytest

Object = dict[str, Any]


def quantity_bytes(text: str) -> int:
    """A memory quantity in the two units that the manifests use."""
    return int(text[:-2]) * {"Mi": 2**20, "Gi": 2**30}[text[-2:]]


def test_every_pod_runs_as_an_ordinary_user_under_the_default_seccomp_profile(pod_specs: list[Object]) -> None:
    assert pod_specs
    for pod in pod_specs:
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] >= 10000, "low ids may be a user of the node"
        assert security["runAsGroup"] >= 10000
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}


def test_no_pod_reaches_into_its_node(pod_specs: list[Object]) -> None:
    for pod in pod_specs:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all("hostPath" not in volume for volume in pod["volumes"])
        assert all("hostPort" not in port for container in pod["containers"] for port in container.get("ports", []))


def test_no_container_sends_telemetry(containers: list[Object]) -> None:
    for container in containers:
        assert {"name": "ORT_DISABLE_TELEMETRY", "value": "1"} in container["env"]


def test_every_container_is_read_only_without_privileges(containers: list[Object]) -> None:
    assert containers
    for container in containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_autoscaler_that_kuberay_adds_is_as_confined_as_the_other_containers(rayservice: Object) -> None:
    cluster = rayservice["spec"]["rayClusterConfig"]
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert cluster["autoscalerOptions"]["securityContext"] == head["securityContext"]
    assert cluster["autoscalerOptions"]["volumeMounts"] == head["volumeMounts"]


def test_every_container_can_write_to_tmp_and_the_volume_is_bounded(pod_specs: list[Object]) -> None:
    for pod in pod_specs:
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            (mount,) = (mount for mount in container["volumeMounts"] if mount["mountPath"] == "/tmp")
            assert volumes[mount["name"]]["emptyDir"]["sizeLimit"]


def test_only_the_ray_head_holds_a_kubernetes_token(pod_specs: list[Object]) -> None:
    for pod in pod_specs:
        is_head = pod["containers"][0]["name"] == "ray-head"
        assert pod.get("automountServiceAccountToken", True) is is_head


def test_no_service_of_the_namespace_becomes_a_setting_of_the_server(pod_specs: list[Object]) -> None:
    # Kubernetes would set POCKETVLM_..._PORT=tcp://... for every service named pocketvlm-...
    assert all(pod["enableServiceLinks"] is False for pod in pod_specs)


def test_every_container_states_what_it_needs_and_is_bounded_in_memory(containers: list[Object]) -> None:
    for container in containers:
        resources = container["resources"]
        assert set(resources["requests"]) == {"cpu", "memory"}
        assert quantity_bytes(resources["limits"]["memory"]) >= quantity_bytes(resources["requests"]["memory"])


def test_every_container_has_the_three_probes(containers: list[Object]) -> None:
    for container in containers:
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)


def test_probes_and_services_name_ports_that_the_containers_have(
    objects: list[Object], pod_specs: list[Object]
) -> None:
    for pod in pod_specs:
        for container in pod["containers"]:
            ports = {port["name"] for port in container["ports"]}
            targets = [container[probe]["httpGet"]["port"] for probe in ("readinessProbe", "livenessProbe")]
            assert {target for target in targets if isinstance(target, str)} <= ports
    deployments = [obj for obj in objects if obj["kind"] == "Deployment"]
    for service in (obj for obj in objects if obj["kind"] == "Service"):
        (matched,) = (d for d in deployments if is_selected(service["spec"]["selector"], d["spec"]["template"]))
        ports = {port["name"] for port in matched["spec"]["template"]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def is_selected(labels: dict[str, str], template: Object) -> bool:
    return labels.items() <= template["metadata"]["labels"].items()


@pytest.mark.parametrize("kind", ["NetworkPolicy", "PodDisruptionBudget"])
def test_policies_select_the_pods_of_their_own_way_of_serving(objects: list[Object], kind: str) -> None:
    templates = {}
    for obj in objects:
        if obj["kind"] == "Deployment":
            templates["edge"] = [obj["spec"]["template"]]
        elif obj["kind"] == "RayService":
            cluster = obj["spec"]["rayClusterConfig"]
            groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
            templates["rayservice"] = [group["template"] for group in groups]
    for policy in (obj for obj in objects if obj["kind"] == kind):
        selector = policy["spec"].get("podSelector") or policy["spec"]["selector"]
        for component, pods in templates.items():
            is_own = policy["metadata"]["labels"]["app.kubernetes.io/component"] == component
            assert [is_selected(selector["matchLabels"], pod) for pod in pods] == [is_own] * len(pods)


def test_ray_labels_that_kuberay_selects_by_are_left_to_kuberay(rayservice: Object) -> None:
    cluster = rayservice["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert not {"app.kubernetes.io/name", "app.kubernetes.io/created-by"} & set(
            group["template"]["metadata"]["labels"]
        )


def test_the_pod_outlives_the_time_that_endpoints_take_to_forget_it(deployment: Object) -> None:
    pod = deployment["spec"]["template"]["spec"]
    (command, seconds) = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert int(seconds) < pod["terminationGracePeriodSeconds"]
