"""The same application as Ray Serve deployments. The only module that imports Ray.

    HTTP -> proxy (Ray) -> ingress (the FastAPI application over a RayClient)
                             -> generator-{model}   one deployment per vision-language model, each replica an engine
                             -> embedder-{model}    one per dual encoder

Replicas, autoscaling, placement, health checks and rolling updates are Ray Serve's own, configured here.
"""

# Without `from __future__ import annotations`: Ray reads the type of `build_app`'s argument at run time.

import asyncio
import math
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)

from bundle.directory import open_bundle
from bundle.errors import (
    BundleError,
    EngineDeadError,
    MachineError,
    ModelNotFoundError,
    OverloadedError,
    PocketVLMError,
)
from bundle.manifest import Task
from serving.api.app import create_app
from serving.edge import configure_logging, open_listener, url_of
from serving.engine.client import LocalClient
from serving.engine.protocol import (
    ClassifyRequest,
    ClassifyResult,
    EmbedRequest,
    EmbedResult,
    GenerateEvent,
    GenerateRequest,
    Health,
    ManagedClient,
    ModelCard,
)
from serving.engine.settings import EngineSettings
from serving.settings import ApiSettings, RaySettings, ScalingSettings, ServerSettings

APPLICATION = "pocketvlm"
INGRESS = "ingress"

_PROBE_HEADROOM = 64
"""Requests that an ingress replica takes beyond what the models can hold: health, metrics, refusals."""
_CONSTRUCTOR_RETRIES = 2
"""A bundle that is refused stays refused; Ray's 20 attempts would hide the reason for minutes."""
_STATUS_AGE_S = 1.0
"""For so long one answer of Serve's controller stands for all probes."""
_STATUS_TIMEOUT_S = 5.0

T = TypeVar("T")


class ClusterArgs(BaseModel):
    """The arguments of `build_app`, as a Serve config file gives them under `args`.

    Attributes:
        bundles: Bundle directories, readable under the same path on every node.
        api: Limits of a request.
        engine: How models run in a replica.
        ray: Replicas and scaling.
        drain_timeout_s: How long a replica that is taken away may finish its requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundles: tuple[Path, ...] = Field(min_length=1)
    api: ApiSettings = ApiSettings()
    engine: EngineSettings = EngineSettings()
    ray: RaySettings = RaySettings()
    drain_timeout_s: int = Field(default=30, ge=0)


@dataclass(frozen=True)
class ServedModel:
    """One model of the application.

    Attributes:
        name: Under which it is asked for.
        task: Decides the deployment's kind and scaling.
        make_client: Called in each replica; pickled on the way there.
    """

    name: str
    task: Task
    make_client: Callable[[], ManagedClient]

    @property
    def deployment(self) -> str:
        """The name that Ray knows."""
        return f"{'embedder' if self.task == 'dual-encoder' else 'generator'}-{self.name}"


class Replica:
    """An engine in a process of Ray's. Ray restarts it when `check_health` raises.

    Args:
        make_client: Makes the engine; started here, closed when Ray takes the replica away.
    """

    async def __init__(self, make_client: Callable[[], ManagedClient]) -> None:  # type: ignore[misc]  # Ray awaits it
        self._client = make_client()
        await self._client.start()

    async def check_health(self) -> None:
        """Raise when the engine died or hangs.

        Raises:
            EngineDeadError: Requests cannot be served by this process any more.
        """
        health = await self._client.health()
        if not health.is_ready:
            raise EngineDeadError(health.reason)

    async def describe(self) -> list[ModelCard]:
        """Return the cards of the models served here."""
        return await self._client.models()

    async def __del__(self) -> None:
        if hasattr(self, "_client"):
            await self._client.close()


class Generator(Replica):
    """A replica of a vision-language model."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """Yield the answer's pieces; cancelled when the ingress cancels."""
        async with aclosing(self._client.generate(request)) as events:  # type: ignore[type-var]
            async for event in events:
                yield event


class Embedder(Replica):
    """A replica of a dual encoder."""

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Return one embedding per input."""
        return await self._client.embed(request)

    async def classify(self, request: ClassifyRequest) -> ClassifyResult:
        """Return every image's score for every label."""
        return await self._client.classify(request)


class RayClient:
    """An `EngineClient` over deployment handles.

    Args:
        handles: By the name of the served model.
        status: Returns for each model the number of replicas that run, by asking Serve's controller; blocks.
    """

    def __init__(self, handles: dict[str, Any], status: Callable[[], dict[str, int]]) -> None:
        self._handles = handles
        self._streams = {name: handle.options(stream=True) for name, handle in handles.items()}
        self._status = status
        self._cards: list[ModelCard] = []
        self._health = Health(is_ready=False, reason="the replicas were not asked yet")
        self._health_until_s = 0.0

    async def models(self) -> list[ModelCard]:
        """Return the served models; asked of the replicas once, for a bundle does not change under a deployment."""
        if not self._cards:
            answers = await asyncio.gather(*(_result(h.describe.remote()) for h in self._handles.values()))
            self._cards = [card for cards in answers for card in cards]
        return self._cards

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """Yield the answer's pieces, then exactly one FinishedEvent, or raise. Closing the iterator cancels."""
        events = self._of(self._streams, request.model).generate.remote(request)
        try:
            async for event in events:
                yield event
        except (RayError, RayServeException) as error:
            raise own_error(error) from error
        finally:
            events.cancel()

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Return one embedding per input."""
        result: EmbedResult = await _result(self._of(self._handles, request.model).embed.remote(request))
        return result

    async def classify(self, request: ClassifyRequest) -> ClassifyResult:
        """Return every image's score for every label."""
        result: ClassifyResult = await _result(self._of(self._handles, request.model).classify.remote(request))
        return result

    async def health(self) -> Health:
        """Return whether every model has a replica that runs.

        Serve's controller is asked, not the replicas: a question to a replica would wait behind its requests, and a
        full model would look like a dead one. The controller hears from each replica's `check_health`.
        """
        if time.monotonic() >= self._health_until_s:
            self._health = await self._ask_controller()
            self._health_until_s = time.monotonic() + _STATUS_AGE_S
        return self._health

    async def _ask_controller(self) -> Health:
        try:
            running = await asyncio.wait_for(asyncio.to_thread(self._status), _STATUS_TIMEOUT_S)
        except (RayError, RayServeException, asyncio.TimeoutError) as error:
            return Health(is_ready=False, reason=f"Serve's controller does not answer: {type(error).__name__}")
        lacking = [name for name, count in running.items() if count == 0]
        reason = f"no replica runs of: {', '.join(lacking)}" if lacking else ""
        return Health(not lacking, reason, {"num_replicas": float(sum(running.values()))})

    def _of(self, handles: dict[str, Any], model: str) -> Any:
        if model not in handles:
            raise ModelNotFoundError(f"no model {model!r} is served; there are {', '.join(handles)}", "model")
        return handles[model]


async def _result(response: Any) -> Any:
    """Return what a replica answers; the replica's work is cancelled with the waiting.

    Raises:
        PocketVLMError: As the replica raised it.
    """
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except (RayError, RayServeException) as error:
        raise own_error(error) from error


def own_error(error: Exception) -> Exception:
    """Return the PocketVLM error behind one of Ray's; an error that we did not raise stays as it is."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, PocketVLMError):
        return error.cause
    if isinstance(error, BackPressureError):
        return OverloadedError(f"every replica is full and the queue as well ({error}); retry after a while")
    if isinstance(error, (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)):
        return EngineDeadError(f"the replica that had this request is gone ({type(error).__name__}); send it again")
    return error


def build_app(args: ClusterArgs) -> serve.Application:
    """Return the application over bundles; a Serve config file names it as `serving.cluster:build_app`.

    Raises:
        BundleError: A bundle is not whole or failed its gate, or two have one name.
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
        manifest = open_bundle(directory, verify=False, allow_ungated=args.engine.allow_ungated)
        if manifest.name in models:
            raise BundleError(
                f"{directory}: a model named {manifest.name} is served already; export with another --name"
            )
        make_client = partial(LocalClient, (directory,), args.engine)
        models[manifest.name] = ServedModel(manifest.name, manifest.task, make_client)
    return tuple(models.values())


def application(models: Sequence[ServedModel], args: ClusterArgs) -> serve.Application:
    """Return the ingress and one deployment per model, bound together."""
    bound = [_model_deployment(model, args).bind(model.make_client) for model in models]
    deployments = {model.name: model.deployment for model in models}
    api = args.api

    def build_asgi_app() -> Any:
        name = serve.get_replica_context().app_name
        handles = {model: serve.get_deployment_handle(deployment, name) for model, deployment in deployments.items()}
        return create_app(RayClient(handles, partial(num_running_replicas, name, deployments)), api)

    return _ingress_deployment(build_asgi_app, models, args).bind(*bound)


def num_running_replicas(application_name: str, deployments: dict[str, str]) -> dict[str, int]:
    """Return for each model how many of its replicas run; none of an application that is being taken away.

    Args:
        application_name: As Serve knows it.
        deployments: Their names by model.
    """
    application = serve.status().applications.get(application_name)
    found = application.deployments if application else {}
    return {
        model: found[deployment].replica_states.get("RUNNING", 0) if deployment in found else 0
        for model, deployment in deployments.items()
    }


def _scaling(model: ServedModel, args: ClusterArgs) -> ScalingSettings:
    return args.ray.embedder if model.task == "dual-encoder" else args.ray.generator


def _model_deployment(model: ServedModel, args: ClusterArgs) -> Any:
    scaling = _scaling(model, args)
    return serve.deployment(
        Embedder if model.task == "dual-encoder" else Generator,
        name=model.deployment,
        max_ongoing_requests=scaling.max_ongoing_requests,
        max_queued_requests=scaling.max_queued_requests,
        autoscaling_config=autoscaling(scaling),
        ray_actor_options={"num_cpus": scaling.num_cpus, "num_gpus": scaling.num_gpus},
        graceful_shutdown_timeout_s=args.drain_timeout_s,
        health_check_period_s=args.ray.health_check_period_s,
        health_check_timeout_s=args.ray.health_check_timeout_s,
        max_constructor_retry_count=_CONSTRUCTOR_RETRIES,
    )


def autoscaling(scaling: ScalingSettings) -> AutoscalingConfig:
    """Return Ray's form of our settings, with what Ray would otherwise choose written out."""
    return AutoscalingConfig(
        min_replicas=scaling.min_replicas,
        # Replicas of an earlier peak are not kept over a redeployment.
        initial_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        target_ongoing_requests=scaling.target_ongoing_requests,
        upscale_delay_s=scaling.upscale_delay_s,
        downscale_delay_s=scaling.downscale_delay_s,
        look_back_period_s=scaling.look_back_period_s,
        # Above 1, a single burst after idleness multiplies into all of `max_replicas`; each of them loads a model.
        upscaling_factor=1.0,
        # Below 1, the last surplus replica can round to "keep" for ever after a stream-heavy peak.
        downscaling_factor=1.0,
    )


def _ingress_deployment(build_asgi_app: Callable[[], Any], models: Sequence[ServedModel], args: ClusterArgs) -> Any:
    scalings = [_scaling(model, args) for model in models]
    held = sum(each.max_replicas * each.max_ongoing_requests + each.max_queued_requests for each in scalings)
    return serve.deployment(
        serve.ingress(build_asgi_app)(),
        name=INGRESS,
        num_replicas=args.ray.ingress_replicas,
        # The models' own queues are the bound; the ingress must never be the one that is full.
        max_ongoing_requests=held + _PROBE_HEADROOM,
        ray_actor_options={"num_cpus": args.ray.ingress_num_cpus},
        graceful_shutdown_timeout_s=args.drain_timeout_s,
        max_constructor_retry_count=_CONSTRUCTOR_RETRIES,
    )


def deploy(bundles: Sequence[Path], settings: ServerSettings, announce: Callable[[str], None] = print) -> None:
    """Serve bundles as Ray Serve deployments until SIGTERM or SIGINT, then take everything down.

    A cluster named by RAY_ADDRESS is joined; without one, a local cluster is started and stopped here.

    Raises:
        SettingsError: The port or the address cannot be had.
        BundleError: A bundle is refused.
        MachineError: Ray Serve could not start the application.
        KeyboardInterrupt: SIGINT came, and everything is stopped.
    """
    configure_logging(settings)
    args = ClusterArgs(
        bundles=tuple(path.resolve() for path in bundles),
        api=settings.api,
        engine=settings.engine,
        ray=settings.ray,
        drain_timeout_s=settings.drain_timeout_s,
    )
    models = served_models(args)
    app = application(models, args)
    with open_listener(settings.host, settings.port) as listener:
        port, url = listener.getsockname()[1], url_of(listener)
    _join_cluster(num_local_cpus(models, args))
    try:
        with _stop_event() as stop:
            serve.start(http_options={"host": settings.host, "port": port})
            _run(app)
            names = ", ".join(model.name for model in models)
            announce(f"PocketVLM serves {names} at {url} (how to ask: {url}/docs)")
            stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


def _run(app: serve.Application) -> None:
    try:
        serve.run(app, name=APPLICATION, route_prefix="/")
    except (RuntimeError, RayError) as error:
        raise MachineError(f"Ray Serve could not start the application: {error}") from error


def num_local_cpus(models: Sequence[ServedModel], args: ClusterArgs) -> int:
    """Return the logical CPUs of a local cluster: the machine's, or what all replicas ask for where that is more.

    Logical CPUs only admit replicas; on a small board, they share the cores.
    """
    scalings = [_scaling(model, args) for model in models]
    wanted = args.ray.ingress_replicas * args.ray.ingress_num_cpus
    wanted += sum(each.max_replicas * each.num_cpus for each in scalings)
    return max(os.cpu_count() or 1, math.ceil(wanted))


def _join_cluster(num_cpus: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine unasked
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")


@contextmanager
def _stop_event() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets; SIGINT stays KeyboardInterrupt.

    To be entered once Ray is there: joining a cluster installs a handler that ends the process with a core dump.
    """
    stop = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)
