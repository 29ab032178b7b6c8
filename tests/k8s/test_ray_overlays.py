"""RayServices beyond the shipped models: a canary, and GPUs. Ray's own schema reads their Serve configs."""

import math
from typing import Any

import kubernetes_validate
import pytest
import yaml

from serving.fake import FAKE_CLIP, FAKE_VLM
from serving.ray_settings import live_settings

Object = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    """Import Ray here, so that collecting takes none."""
    global schema, cluster
    schema = pytest.importorskip("ray.serve.schema", reason="needs the extra [ray]")
    from serving.cluster import application as cluster


def application_of(service: Object) -> Any:
    (application,) = schema.ServeDeploySchema.model_validate(
        yaml.safe_load(service["spec"]["serveConfigV2"])
    ).applications
    return application


def arguments(service: Object) -> Any:
    return cluster.ClusterArgs.model_validate(application_of(service).args)


def groups(service: Object) -> list[Object]:
    ray_cluster = service["spec"]["rayClusterConfig"]
    return [ray_cluster["headGroupSpec"], *ray_cluster["workerGroupSpecs"]]


def test_bundles_lie_on_the_volume_that_head_and_workers_mount(rayservice_of_volume: Object) -> None:
    for path in arguments(rayservice_of_volume).bundles:
        assert str(path).startswith("/models/")
    for group in groups(rayservice_of_volume):
        pod = group["template"]["spec"]
        (mount,) = (each for each in pod["containers"][0]["volumeMounts"] if each["mountPath"] == "/models")
        (volume,) = (each for each in pod["volumes"] if each["name"] == mount["name"])
        assert (volume["persistentVolumeClaim"]["readOnly"], mount["readOnly"]) == (True, True)


def test_ray_pods_satisfy_kubernetes(rayservice_of_volume: Object) -> None:
    for group in groups(rayservice_of_volume):
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_a_canarys_variants_are_the_models_that_are_scaled(canary_service: Object) -> None:
    application = application_of(canary_service)
    (override,) = application.deployments
    (canary,) = live_settings(override.user_config).canaries
    args = arguments(canary_service)
    assert override.name == "ingress"
    assert [each.model for each in canary.variants] == list(args.ray.models) == [path.name for path in args.bundles]


def test_a_canarys_first_replicas_fit_on_the_first_worker(canary_service: Object) -> None:
    ray = arguments(canary_service).ray
    fewest = ray.ingress_replicas * ray.ingress_num_cpus
    fewest += sum(each.min_replicas * each.num_cpus for each in ray.models.values())
    assert fewest <= float(groups(canary_service)[1]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])


def test_a_gpus_replicas_fit_on_it_and_its_cores(gpu_service: Object) -> None:
    ray = arguments(gpu_service).ray
    worker = groups(gpu_service)[1]
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    per_worker = math.floor(ray.generator.max_replicas / worker["maxReplicas"])
    embedders = math.floor(ray.embedder.max_replicas / worker["maxReplicas"])
    gpus = per_worker * ray.generator.num_gpus + embedders * ray.embedder.num_gpus
    assert 0 < gpus <= float(limits["nvidia.com/gpu"])
    cpus = per_worker * ray.generator.num_cpus + embedders * ray.embedder.num_cpus
    assert cpus + ray.ingress_replicas * ray.ingress_num_cpus <= float(limits["cpu"])


def test_a_gpus_deployments_take_the_arguments(gpu_service: Object) -> None:
    args = arguments(gpu_service)
    assert args.engine.provider == "cuda"
    models = [cluster.ServedModel(card, object) for card in (FAKE_VLM, FAKE_CLIP)]
    assert isinstance(cluster.application(models, args), cluster.serve.Application)


def test_only_workers_tolerate_what_keeps_others_off_gpus(gpu_service: Object) -> None:
    head, worker = groups(gpu_service)
    assert "tolerations" not in head["template"]["spec"]
    assert [each["key"] for each in worker["template"]["spec"]["tolerations"]] == ["nvidia.com/gpu"]
