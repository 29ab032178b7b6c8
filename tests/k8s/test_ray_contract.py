"""The RayService against the application that it starts. Ray's own schema reads the Serve config."""

import importlib
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from serving.fake import FAKE_CLIP, FAKE_VLM
from serving.settings import ServerSettings

Object = dict[str, Any]
CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    """Import Ray here, so that collecting takes none."""
    global schema, cluster, deploy
    schema = pytest.importorskip("ray.serve.schema", reason="needs the extra [ray]")
    from serving.cluster import application as cluster
    from serving.cluster import deploy


def serve_config(rayservice: Object) -> Any:
    return schema.ServeDeploySchema.model_validate(yaml.safe_load(rayservice["spec"]["serveConfigV2"]))


def arguments(rayservice: Object) -> Any:
    (application,) = serve_config(rayservice).applications
    return cluster.ClusterArgs.model_validate(application.args)


def worker_group(rayservice: Object) -> Object:
    (group,) = rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return group


def ray_containers(rayservice: Object) -> list[Object]:
    head = rayservice["spec"]["rayClusterConfig"]["headGroupSpec"]
    return [group["template"]["spec"]["containers"][0] for group in (head, worker_group(rayservice))]


def worker_cpus(rayservice: Object) -> float:
    return float(ray_containers(rayservice)[1]["resources"]["limits"]["cpu"])


def test_the_import_path_leads_to_the_function_that_builds_the_application(rayservice: Object) -> None:
    (application,) = serve_config(rayservice).applications
    module, name = application.import_path.split(":")
    assert getattr(importlib.import_module(module), name) is cluster.build_app
    assert (application.name, application.route_prefix) == (deploy.APPLICATION, "/")


def test_the_arguments_are_those_of_the_application_and_its_deployments_take_them(rayservice: Object) -> None:
    args = arguments(rayservice)
    models = [
        cluster.ServedModel(replace(FAKE_VLM, name="pocketvlm-vlm-wide"), object),
        cluster.ServedModel(replace(FAKE_CLIP, name="pocketvlm-clip"), object),
    ]
    assert isinstance(cluster.application(models, args), cluster.serve.Application)
    for scaling in (args.ray.generator, args.ray.embedder):
        assert cluster.autoscaling(scaling).max_replicas == scaling.max_replicas > scaling.min_replicas


def test_the_bundles_are_those_that_the_image_holds(rayservice: Object) -> None:
    from commands.shipped import SERVED

    assert [str(path) for path in arguments(rayservice).bundles] == [f"/bundles/{name}" for name in SERVED]


def test_serve_listens_to_the_cluster_on_the_port_that_every_pod_names(rayservice: Object) -> None:
    options = serve_config(rayservice).http_options
    assert (options.host, options.port) == ("0.0.0.0", ServerSettings().port)
    for container in ray_containers(rayservice):
        assert {"name": "serve", "containerPort": options.port} in container["ports"]


def test_the_head_runs_no_replica_and_takes_no_traffic(rayservice: Object) -> None:
    assert rayservice["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert rayservice["spec"]["excludeHeadPodFromServeSvc"] is True


def test_one_replica_of_everything_fits_on_the_first_worker(rayservice: Object) -> None:
    ray = arguments(rayservice).ray
    fewest = ray.ingress_replicas * ray.ingress_num_cpus + sum(
        scaling.min_replicas * scaling.num_cpus for scaling in (ray.generator, ray.embedder)
    )
    group = worker_group(rayservice)
    assert fewest <= group["minReplicas"] * worker_cpus(rayservice)
    assert group["minReplicas"] == group["replicas"]


def test_the_most_replicas_fit_on_the_most_workers_and_need_them(rayservice: Object) -> None:
    """One worker after another takes a generator and an embedder, and what is left over takes the ingress."""
    ray, cpus = arguments(rayservice).ray, worker_cpus(rayservice)
    per_worker = math.floor(cpus / (ray.generator.num_cpus + ray.embedder.num_cpus))
    workers = worker_group(rayservice)["maxReplicas"]
    assert ray.generator.max_replicas == ray.embedder.max_replicas == per_worker * workers
    spare = cpus - per_worker * (ray.generator.num_cpus + ray.embedder.num_cpus)
    assert ray.ingress_replicas <= math.floor(spare / ray.ingress_num_cpus) * workers


def test_an_operator_has_as_many_threads_as_its_generator_reserves(rayservice: Object) -> None:
    args = arguments(rayservice)
    assert args.engine.intra_threads == args.ray.generator.num_cpus


def test_a_worker_drains_its_node_and_outlives_the_requests_on_it(rayservice: Object) -> None:
    pod = worker_group(rayservice)["template"]["spec"]
    (*_, script) = ray_containers(rayservice)[1]["lifecycle"]["preStop"]["exec"]["command"]
    drain, sleep = (shlex.split(line) for line in script.split(";"))
    assert drain[:2] == ["ray", "drain-node"]
    told_s, waited_s = int(drain[drain.index("--deadline-remaining-seconds") + 1]), int(sleep[1])
    assert arguments(rayservice).drain_timeout_s < told_s == waited_s < pod["terminationGracePeriodSeconds"]


def test_the_command_that_drains_a_node_is_rays(rayservice: Object) -> None:
    from ray.scripts.scripts import drain_node

    (*_, script) = ray_containers(rayservice)[1]["lifecycle"]["preStop"]["exec"]["command"]
    arguments = shlex.split(script.split(";")[0])[2:]
    drain_node.make_context("drain-node", arguments)


def test_rays_processes_have_the_environment_that_the_deployments_count_on(rayservice: Object) -> None:
    from serving.cluster.environment import RAY_ENVIRONMENT

    for container in ray_containers(rayservice):
        stated = {variable["name"]: variable["value"] for variable in container["env"]}
        assert stated.items() >= RAY_ENVIRONMENT.items()


def test_workers_are_kept_longer_than_a_lull_between_two_loads(rayservice: Object) -> None:
    ray = arguments(rayservice).ray
    idle_s = rayservice["spec"]["rayClusterConfig"]["autoscalerOptions"]["idleTimeoutSeconds"]
    assert idle_s > max(ray.generator.downscale_delay_s, ray.embedder.downscale_delay_s)


def test_the_manifest_names_the_version_of_ray_that_the_image_installs(rayservice: Object) -> None:
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    (ray,) = (Requirement(line) for line in lines if line.startswith("ray=="))
    assert str(ray.specifier) == f"=={rayservice['spec']['rayClusterConfig']['rayVersion']}"
    assert all(container["image"].startswith("pocketvlm-ray:") for container in ray_containers(rayservice))


def test_the_worker_is_ready_when_serves_proxy_on_it_is(rayservice: Object) -> None:
    head, worker = ray_containers(rayservice)
    assert worker["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}
    # Ray's agent: dashboard-agent-listen-port, which KubeRay starts with its default.
    agent = {"path": "/api/healthz", "port": 52365}
    assert [head["livenessProbe"]["httpGet"], worker["livenessProbe"]["httpGet"]] == [agent, agent]
