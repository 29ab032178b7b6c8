"""What the builder makes of its arguments, and what replicas tell; no cluster runs."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import PydanticDeprecatedSince20

from bundle.errors import BundleError, BundleFormatError, EngineDeadError, GateError, SettingsError
from serving.fake import FakeBehaviour, FakeClient
from serving.protocol import Health, ModelCard
from serving.ray_settings import ScalingSettings

with warnings.catch_warnings():
    # Ray 2.60 declares its own settings in a way that pydantic will drop.
    warnings.simplefilter("ignore", PydanticDeprecatedSince20)
    from serving.cluster import application as cluster
    from serving.cluster.application import ClusterArgs, ServedModel, autoscaling, num_local_cpus
    from serving.cluster.client import RayClient
    from serving.cluster.environment import RAY_ENVIRONMENT, set_ray_environment
    from serving.cluster.replicas import Replica
    from serving.cluster.watch import Report


CANARY = {"name": "c", "variants": [{"model": "a", "weight": 90}, {"model": "b", "weight": 10}]}


def fake(name: str) -> ServedModel:
    card = ModelCard(name, "image-text-to-text", "fake", {}, 0, 1000)
    return ServedModel(card, partial(FakeClient, (card,)))


def test_ray_reads_the_type_of_the_builders_argument() -> None:
    """With postponed annotations, Ray would hand over a plain dict without a word."""
    (parameter,) = inspect.signature(cluster.build_app).parameters.values()
    assert parameter.annotation is ClusterArgs


def test_the_builder_names_one_deployment_per_model(clip_bundle: Path, smolvlm_bundle: Path) -> None:
    args = ClusterArgs(bundles=(clip_bundle, smolvlm_bundle))
    assert [model.deployment for model in cluster.served_models(args)] == [
        "embedder-tiny-clip",
        "generator-tiny-smolvlm",
    ]
    assert cluster.build_app(args)._bound_deployment.name == "ingress"


def test_a_bundle_that_is_refused_is_refused_before_anything_starts(clip_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleFormatError):
        cluster.build_app(ClusterArgs(bundles=(tmp_path,)))
    with pytest.raises(BundleError, match="tiny-clip is served already"):
        cluster.build_app(ClusterArgs(bundles=(clip_bundle, clip_bundle)))


def test_what_ray_would_choose_for_scaling_is_written_out() -> None:
    config = autoscaling(ScalingSettings(min_replicas=2, max_replicas=5))
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (2, 2, 5)
    assert (config.upscaling_factor, config.downscaling_factor) == (1.0, 1.0)


@pytest.mark.parametrize(("ingress_replicas", "queued"), [(1, 64), (2, 32), (3, 22)])
def test_the_queue_is_shared_among_the_ingress_replicas(ingress_replicas: int, queued: int) -> None:
    args = ClusterArgs.model_validate({"bundles": ["x"], "ray": {"ingress_replicas": ingress_replicas}})
    deployment = cluster._model_deployment(fake("a"), args)
    assert deployment.max_queued_requests == queued


def test_a_local_cluster_admits_every_replica() -> None:
    args = ClusterArgs.model_validate({"bundles": ["x"], "ray": {"generator": {"max_replicas": 100, "num_cpus": 2}}})
    # Half a CPU for the ingress, and a quarter more of each while an update replaces them.
    assert num_local_cpus([fake("a")], args) == 2 * 125 + 1
    assert num_local_cpus([], args) == os.cpu_count()


def cluster_args(**ray: Any) -> ClusterArgs:
    return ClusterArgs.model_validate({"bundles": ["x"], "ray": ray})


def test_a_model_has_its_own_scaling_where_that_is_given() -> None:
    args = cluster_args(models={"a": {"num_gpus": 0.25, "max_replicas": 5}})
    options = {name: cluster._model_deployment(fake(name), args) for name in "ab"}
    assert [each.ray_actor_options["num_gpus"] for each in options.values()] == [0.25, 0.0]
    assert [each._deployment_config.autoscaling_config.max_replicas for each in options.values()] == [5, 2]


@pytest.mark.parametrize(
    ("ray", "said"),
    [
        ({"models": {"b": {}}}, "ray.models scales 'b', which is not served; served: a"),
        ({"canaries": [CANARY]}, "names the variant 'b', which is not served"),
    ],
)
def test_settings_of_models_that_are_not_served_are_refused(ray: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        cluster.application([fake("a")], cluster_args(**ray))


def test_a_variant_whose_gate_failed_is_refused_by_name(smolvlm_bundle: Path, tmp_path: Path) -> None:
    failed = shutil.copytree(smolvlm_bundle, tmp_path / "failed")
    manifest = json.loads((failed / "manifest.json").read_text())
    gate = {"name": "clear_agreement", "value": 0.1, "limit": 0.95, "direction": "min", "n": 9, "passed": False}
    (failed / "manifest.json").write_text(json.dumps({**manifest, "name": "b", "gates": [gate]}))
    args = ClusterArgs.model_validate({"bundles": [str(smolvlm_bundle), str(failed)], "ray": {"canaries": [CANARY]}})
    with pytest.raises(GateError, match="clear_agreement"):
        cluster.build_app(args)


@pytest.mark.parametrize(("min_replicas", "planned"), [(1, (0, 0.0)), (0, (11, 9.0))])
def test_requests_are_held_for_models_that_may_have_no_replica(min_replicas: int, planned: tuple[int, float]) -> None:
    scaling = {"min_replicas": min_replicas, "max_held_requests": 32, "hold_timeout_s": 9}
    model = cluster._planned(fake("a"), cluster_args(generator=scaling, ingress_replicas=3))
    assert (model.max_held_requests, model.hold_timeout_s) == planned


@pytest.mark.filterwarnings("ignore:coroutine 'Process.__del__' was never awaited")
def test_a_replica_whose_engine_died_is_reported_to_ray() -> None:
    client = FakeClient()

    async def check() -> None:
        replica = Replica.__new__(Replica)
        await replica.__init__(lambda: client)  # type: ignore[misc,func-returns-value]
        await replica.check_health()
        client.behaviour.health = Health(is_ready=False, reason="worker died", is_alive=False)
        with pytest.raises(EngineDeadError, match="worker died"):
            await replica.check_health()

    asyncio.run(check())


@pytest.mark.filterwarnings("ignore:coroutine 'Process.__del__' was never awaited")
def test_what_a_replica_reports_to_the_routers_is_plain_data() -> None:
    """Ray carries it through its controller, and `Report` takes it up."""

    async def report() -> dict[str, Any]:
        replica = Replica.__new__(Replica)
        replica._client = FakeClient(behaviour=FakeBehaviour(health=Health(False, "worker died")))
        return await replica.record_routing_stats()

    told = Report(**json.loads(json.dumps(asyncio.run(report()))))
    assert (told.is_ready, told.reason, told.gauges["num_requests_running"]) == (False, "worker died", 0.0)


def test_models_are_told_from_their_manifests_while_a_replica_is_full_or_absent(smolvlm_bundle, clip_bundle) -> None:
    models = cluster.served_models(ClusterArgs(bundles=(smolvlm_bundle, clip_bundle)))
    told = asyncio.run(RayClient([model.card for model in models], {}, 60).models())
    assert [(card.name, card.task, card.context_tokens) for card in told] == [
        ("tiny-smolvlm", "image-text-to-text", 512),
        ("tiny-clip", "dual-encoder", None),
    ]


def test_a_name_that_ray_would_not_take_becomes_one_that_tells_it_apart() -> None:
    names = [fake(name).deployment for name in ("org/model", "org=2Fmodel", "a#b", "模型", "..")]
    assert names == [
        "generator-org=2Fmodel",
        "generator-org=3D2Fmodel",
        "generator-a=23b",
        "generator-=E6=A8=A1=E5=9E=8B",
        "generator-..",
    ]


def test_what_is_set_already_stays() -> None:
    environment = {"RAY_COLOR_PREFIX": "1"}
    set_ray_environment(environment)
    assert environment == {**RAY_ENVIRONMENT, "RAY_COLOR_PREFIX": "1"}


def test_an_encoder_is_a_deployment_of_its_own_where_that_is_wanted(smolvlm_bundle: Path, clip_bundle: Path) -> None:
    ray = {"compose": "encoder", "encoder": {"num_gpus": 0.25, "max_replicas": 3}}
    args = ClusterArgs.model_validate({"bundles": [str(smolvlm_bundle), str(clip_bundle)], "ray": ray})
    models = cluster.served_models(args)
    wanted = {each.deployment: each.resources["GPU"] for each in cluster.wanted(models, args)[1:]}
    assert wanted == {"generator-tiny-smolvlm": 0.0, "encoder-tiny-smolvlm": 0.25, "embedder-tiny-clip": 0.0}
    _, encoder, name, _ = cluster._bound(models[0], args)._bound_deployment.init_args
    assert (encoder._bound_deployment.name, name) == ("encoder-tiny-smolvlm", "encoder-tiny-smolvlm")
    assert len(cluster._bound(models[1], args)._bound_deployment.init_args) == 1


def test_replicas_are_replaced_before_the_old_ones_stop() -> None:
    assert cluster._model_deployment(fake("a"), cluster_args())._deployment_config.max_surge_percent == 25
    none = cluster._model_deployment(fake("a"), cluster_args(update_surge_percent=0))
    assert none._deployment_config.max_surge_percent == 0
