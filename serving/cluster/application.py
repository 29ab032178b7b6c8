"""The application as Ray Serve deployments: which there are, how many replicas each has, what they are bound to.

    HTTP -> proxy (Ray) -> ingress (the FastAPI application over a RayClient)
                             -> generator-{model}   one deployment per vision-language model, each replica an engine
                                  -> encoder-{model}   its vision encoder, where that is a deployment of its own
                             -> embedder-{model}    one per model that embeds or ranks

Replicas, autoscaling, placement, health checks and rolling updates are Ray Serve's own, configured here.
"""

# Without `from __future__ import annotations`: Ray reads the type of `build_app`'s argument at run time.

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from bundle.directory import open_bundle
from bundle.errors import BundleError, SettingsError
from bundle.manifest import BOTH, RANKING_TASKS, Task
from serving.cluster.autoscaling import LoadPolicy
from serving.cluster.canary import check_canaries
from serving.cluster.ingress import IngressPlan, PlannedModel, ingress_deployment
from serving.cluster.proxy import INGRESS
from serving.cluster.replicas import Embedder, Generator, SeeingHost, VisionEncoder
from serving.cluster.room import Wanted
from serving.cluster.router import ContentRouter, WatchingRouter
from serving.models.cards import card_of
from serving.models.client import LocalClient
from serving.models.elsewhere import Elsewhere
from serving.models.encoder_host import EncoderHost
from serving.protocol import ManagedClient, ModelCard
from serving.ray_settings import LiveSettings, RaySettings, ScalingSettings
from serving.settings import ApiSettings, EngineSettings
from serving.tracing import try_open_tracer
from serving.tracing_settings import TracingSettings

_PROBE_HEADROOM = 64
"""Requests that an ingress replica takes beyond what the models can hold: health, metrics, refusals."""
_CONSTRUCTOR_RETRIES = 2
"""A bundle that is refused stays refused; Ray's 20 attempts would hide the reason for minutes."""
_SHUTDOWN_LOOK_S = 0.5
_REPORT_PERIOD_S = 1.0
"""How old gauges, and the word of an engine that it is not ready, may be."""


class ClusterArgs(BaseModel):
    """The arguments of `build_app`, as a Serve config file gives them under `args`.

    Attributes:
        bundles: Bundle directories, readable under the same path on every node.
        api: Limits of a request.
        engine: How models run in a replica.
        ray: Replicas and scaling.
        drain_timeout_s: How long a replica that is taken away may finish its requests.
        tracing: Traces of requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundles: tuple[Path, ...] = Field(min_length=1)
    api: ApiSettings = ApiSettings()
    engine: EngineSettings = EngineSettings()
    ray: RaySettings = RaySettings()
    drain_timeout_s: int = Field(default=30, ge=0)
    tracing: TracingSettings = TracingSettings()


@dataclass(frozen=True)
class ServedModel:
    """One model of the application.

    Attributes:
        card: What is told of it, without asking a replica: a full one would not answer.
        make_client: Called in each replica; pickled on the way there.
        make_host: The same of its vision encoder alone; None of a model that has none, or cannot do without.
    """

    card: ModelCard
    make_client: Callable[..., ManagedClient]
    make_host: Callable[[], SeeingHost] | None = None

    @property
    def name(self) -> str:
        """Under which it is asked for."""
        return self.card.name

    @property
    def task(self) -> Task:
        """Decides the deployment's kind and scaling."""
        return self.card.task

    @property
    def deployment(self) -> str:
        """The name that Ray knows. It goes into replicas' ids, logs' file names and metrics, so it is plain."""
        return self._plain("embedder" if self.task in RANKING_TASKS else "generator")

    @property
    def encoder_deployment(self) -> str:
        """The same of its vision encoder, where that is a deployment of its own."""
        return self._plain("encoder")

    def _plain(self, kind: str) -> str:
        return f"{kind}-{quote(self.name, safe='').replace('%', '=')}"


def build_app(args: ClusterArgs) -> serve.Application:
    """Return the application over bundles; a Serve config file names it as `serving.cluster.application:build_app`.

    Raises:
        BundleError: A bundle is not whole or failed its gate, or two have one name.
        SettingsError: Scaling or a canary names a model that is not served, or a canary cannot be.
    """
    return application(served_models(args), args)


def served_models(args: ClusterArgs) -> tuple[ServedModel, ...]:
    """Return what the bundles hold, in their order.

    Raises:
        BundleError: A bundle is not whole or failed its gate, or two have one name.
    """
    models: dict[str, ServedModel] = {}
    for directory in args.bundles:
        # The replicas verify digests themselves, each on its own node.
        manifest = open_bundle(directory, verify=False, allow_ungated=args.engine.allow_ungated).manifest
        if manifest.name in models:
            raise BundleError(
                f"{directory}: a model named {manifest.name} is served already; export with another --name"
            )
        make_client = partial(_make_client, directory, args.engine, args.tracing)
        make_host = partial(EncoderHost, directory, args.engine)
        models[manifest.name] = ServedModel(card_of(manifest, args.engine), make_client, make_host)
    return tuple(models.values())


def _make_client(
    directory: Path, engine: EngineSettings, tracing: TracingSettings, elsewhere: Elsewhere | None = None
) -> ManagedClient:
    return LocalClient((directory,), engine, try_open_tracer(tracing), elsewhere)


def application(models: Sequence[ServedModel], args: ClusterArgs) -> serve.Application:
    """Return the ingress and one deployment per model, bound together.

    Raises:
        SettingsError: Scaling or a canary names a model that is not served, or a canary cannot be.
    """
    _check_names(models, args)
    bound = [_bound(model, args) for model in models]
    planned = tuple(_planned(model, args) for model in models)
    plan = IngressPlan(planned, args.api, args.ray.patience_s, args.tracing)
    return _ingress_deployment(models, args).bind(plan, *bound)


def _bound(model: ServedModel, args: ClusterArgs) -> serve.Application:
    deployment = _model_deployment(model, args)
    if not _has_own_encoder(model, args):
        return deployment.bind(model.make_client)
    name, scaling = model.encoder_deployment, args.ray.encoder
    encoder = _deployment(VisionEncoder, name, scaling, args, num_callers=_scaling(model, args).max_replicas)
    return deployment.bind(model.make_client, encoder.bind(model.make_host), name, args.ray.patience_s)


def _has_own_encoder(model: ServedModel, args: ClusterArgs) -> bool:
    is_generator = model.task not in RANKING_TASKS
    return args.ray.compose == "encoder" and is_generator and model.make_host is not None


def _check_names(models: Sequence[ServedModel], args: ClusterArgs) -> None:
    names = [model.name for model in models]
    if both := [model.name for model in models if model.task == BOTH]:
        raise SettingsError(
            f"{both[0]} answers and embeds by one decoder, which one process does: serve it with pocketvlm serve, or "
            "export the checkpoint twice for a cluster, once with --task embed"
        )
    for name in args.ray.models:
        if name not in names:
            raise SettingsError(f"ray.models scales {name!r}, which is not served; served: {', '.join(names)}")
    check_canaries(args.ray.canaries, [model.card for model in models])


def _planned(model: ServedModel, args: ClusterArgs) -> PlannedModel:
    scaling = _scaling(model, args)
    if scaling.min_replicas:
        return PlannedModel(model.card, model.deployment)
    share = math.ceil(scaling.max_held_requests / args.ray.ingress_replicas)
    return PlannedModel(model.card, model.deployment, share, scaling.hold_timeout_s)


def _scaling(model: ServedModel, args: ClusterArgs) -> ScalingSettings:
    of_kind = args.ray.embedder if model.task in RANKING_TASKS else args.ray.generator
    return args.ray.models.get(model.name, of_kind)


def _model_deployment(model: ServedModel, args: ClusterArgs) -> Any:
    kind = Embedder if model.task in RANKING_TASKS else Generator
    return _deployment(kind, model.deployment, _scaling(model, args), args, num_callers=args.ray.ingress_replicas)


def _deployment(kind: type, name: str, scaling: ScalingSettings, args: ClusterArgs, *, num_callers: int) -> Any:
    return serve.deployment(
        kind,
        name=name,
        max_ongoing_requests=scaling.max_ongoing_requests,
        # Each process that sends requests has a queue of its own.
        max_queued_requests=math.ceil(scaling.max_queued_requests / num_callers),
        autoscaling_config=autoscaling(scaling),
        ray_actor_options={"num_cpus": scaling.num_cpus, "num_gpus": scaling.num_gpus},
        **_common_options(name, args),
    )


def autoscaling(scaling: ScalingSettings) -> AutoscalingConfig:
    """Return Ray's form of our settings, with what Ray would otherwise choose written out."""
    return AutoscalingConfig(
        min_replicas=scaling.min_replicas,
        # Replicas of an earlier peak are not kept over a redeployment.
        initial_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        target_ongoing_requests=scaling.target_ongoing_requests,
        policy=AutoscalingPolicy(
            policy_function=LoadPolicy,
            policy_kwargs={
                "targets": scaling.targets.model_dump(),
                "target_requests": scaling.target_ongoing_requests,
            },
        ),
        upscale_delay_s=scaling.upscale_delay_s,
        downscale_delay_s=scaling.downscale_delay_s,
        downscale_to_zero_delay_s=scaling.downscale_to_zero_delay_s,
        look_back_period_s=scaling.look_back_period_s,
        # Above 1, a single burst after idleness multiplies into all of `max_replicas`; each of them loads a model.
        upscaling_factor=1.0,
        # Below 1, the last surplus replica can round to "keep" for ever after a stream-heavy peak.
        downscaling_factor=1.0,
    )


def _ingress_deployment(models: Sequence[ServedModel], args: ClusterArgs) -> Any:
    scalings = [_scaling(model, args) for model in models]
    held = sum(each.max_replicas * each.max_ongoing_requests + each.max_queued_requests for each in scalings)
    return ingress_deployment(
        name=INGRESS,
        num_replicas=args.ray.ingress_replicas,
        # The models' own queues are the bound; the ingress must never be the one that is full.
        max_ongoing_requests=held + _PROBE_HEADROOM,
        ray_actor_options={"num_cpus": args.ray.ingress_num_cpus},
        user_config=LiveSettings(canaries=args.ray.canaries).model_dump(mode="json"),
        **_common_options(INGRESS, args),
    )


def _common_options(deployment: str, args: ClusterArgs) -> dict[str, Any]:
    return {
        "graceful_shutdown_timeout_s": args.drain_timeout_s,
        # How often Ray looks whether the replicas that it stops are done; its 2 s would be added to every stop.
        "graceful_shutdown_wait_loop_s": _SHUTDOWN_LOOK_S,
        "health_check_period_s": args.ray.health_check_period_s,
        "health_check_timeout_s": args.ray.health_check_timeout_s,
        "max_constructor_retry_count": _CONSTRUCTOR_RETRIES,
        # By itself, Ray stops an old replica before it starts the new one: of a single one, nothing serves meanwhile.
        "max_surge_percent": args.ray.update_surge_percent,
        "request_router_config": RequestRouterConfig(
            request_router_class=ContentRouter
            if args.ray.routing == "content" and deployment != INGRESS
            else WatchingRouter,
            request_router_kwargs={"deployment": deployment, "silent_after_s": args.ray.silent_after_s},
            request_routing_stats_period_s=_REPORT_PERIOD_S,
            request_routing_stats_timeout_s=args.ray.health_check_timeout_s,
        ),
    }


def wanted(models: Sequence[ServedModel], args: ClusterArgs) -> list[Wanted]:
    """Return what each deployment asks of a cluster."""
    ingress = {"CPU": args.ray.ingress_num_cpus}
    found = [Wanted(INGRESS, args.ray.ingress_replicas, ingress, "ray.ingress_num_cpus")]
    for model in models:
        kind = "embedder" if model.task in RANKING_TASKS else "generator"
        place = f"models.{model.name}" if model.name in args.ray.models else kind
        found.append(_wanted(model.deployment, _scaling(model, args), place))
        if _has_own_encoder(model, args):
            found.append(_wanted(model.encoder_deployment, args.ray.encoder, "encoder"))
    return found


def _wanted(deployment: str, scaling: ScalingSettings, place: str) -> Wanted:
    resources = {"CPU": scaling.num_cpus, "GPU": scaling.num_gpus}
    return Wanted(deployment, scaling.min_replicas, resources, f"num_cpus or num_gpus of ray.{place}")


def num_local_cpus(models: Sequence[ServedModel], args: ClusterArgs) -> int:
    """Return the logical CPUs of a local cluster: the machine's, or what all replicas ask for where that is more.

    Logical CPUs only admit replicas; on a small board, they share the cores.
    """
    scalings = [_scaling(model, args) for model in models]
    scalings += [args.ray.encoder for model in models if _has_own_encoder(model, args)]
    most = sum(_with_surge(each.max_replicas, args) * each.num_cpus for each in scalings)
    most += _with_surge(args.ray.ingress_replicas, args) * args.ray.ingress_num_cpus
    return max(os.cpu_count() or 1, math.ceil(most))


def _with_surge(num_replicas: int, args: ClusterArgs) -> int:
    return num_replicas + math.ceil(num_replicas * args.ray.update_surge_percent / 100)
