"""The HTTP application in a replica of Ray's: what differs from the same application on uvicorn."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.app import create_app
from serving.api.record import REQUEST_ID
from serving.api.status import exposition_of
from serving.cluster.canary import VariantFigures, compared
from serving.cluster.client import RayClient, Replicas
from serving.cluster.exposition import joined
from serving.cluster.hold import Hold
from serving.cluster.proxy import MARK
from serving.cluster.watch import watch_of
from serving.protocol import ModelCard
from serving.ray_settings import live_settings
from serving.settings import ApiSettings
from serving.tracing import try_open_tracer
from serving.tracing_settings import TracingSettings

METRICS = "/metrics"
CANARIES = "/cluster/canaries"
_PROBES = ("GET", "HEAD")
_PEER_S = 2.0
"""How long the other ingress replicas may take to tell theirs; a scrape has 10 s."""


@dataclass(frozen=True)
class PlannedModel:
    """One model that an ingress replica serves.

    Attributes:
        card: What is told of it.
        deployment: The name that Ray knows.
        max_held_requests: That wait in one ingress replica while there is no replica; 0 of a model that always has one.
        hold_timeout_s: How long they wait.
    """

    card: ModelCard
    deployment: str
    max_held_requests: int = 0
    hold_timeout_s: float = 0.0


@dataclass(frozen=True)
class IngressPlan:
    """What an ingress replica serves; pickled on the way there.

    Attributes:
        models: In order.
        api: Limits of a request.
        patience_s: How long a request waits while its model has no replica that can take it.
        tracing: Traces of requests.
    """

    models: tuple[PlannedModel, ...]
    api: ApiSettings
    patience_s: float
    tracing: TracingSettings


class Ingress:
    """The HTTP application over the models' deployments, and a hand on its drain.

    Args:
        plan: What is served.
        handles: Of the models' deployments, in the plan's order.
    """

    def __init__(self, plan: IngressPlan, *handles: Any) -> None:
        cards = [model.card for model in plan.models]
        self._client = RayClient(cards, _replicas(plan, handles), plan.patience_s)
        self._api = plan.api
        self._tracer = try_open_tracer(plan.tracing)
        self._num_under_way = 0

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over what may change while requests run; called by Ray at the start, and whenever `user_config` changes.

        Args:
            user_config: The fields of `LiveSettings`.

        Raises:
            SettingsError: It cannot be served.
        """
        self._client.split(live_settings(user_config).canaries)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application; called by Ray once."""
        app = create_app(self._client, self._api, tracer=self._tracer)
        app.add_route(CANARIES, self._canaries, include_in_schema=False)
        app.router.routes.insert(0, Route(METRICS, self._metrics_of_all))  # behind the same door as the application's
        self._app = app

        async def application(scope: Scope, receive: Receive, send: Send) -> None:  # a method would be taken for ASGI 2
            await self._serve(scope, receive, send)

        return application

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_work = scope["type"] == "http" and scope["method"] not in _PROBES
        send = _for_proxy(send)
        self._num_under_way += is_work
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_under_way -= is_work

    async def exposition(self) -> tuple[str, str]:
        """Return this replica's id, and its own metrics."""
        text = await exposition_of(self._app.state.service)
        return serve.get_replica_context().replica_id.unique_id, text.decode()

    async def _metrics_of_all(self, request: Request) -> Response:
        """Tell the metrics of all ingress replicas; of this one alone where the others cannot be asked in time."""
        told = joined(dict([await self.exposition(), *await self._ask_all("exposition")]))
        return Response(told, media_type=CONTENT_TYPE_LATEST)

    async def canary_figures(self) -> tuple[str, dict[str, dict[str, VariantFigures]]]:
        """Return this replica's id, and what it saw of each canary's variants."""
        return serve.get_replica_context().replica_id.unique_id, self._client.told()

    async def _canaries(self, request: Request) -> Response:
        """Tell of each canary's variants side by side: weights, requests, times, quality."""
        told = dict([await self.canary_figures(), *await self._ask_all("canary_figures")])
        cards = {card.name: card for card in await self._client.models()}
        canaries = [
            compared(canary, [each.get(canary.name, {}) for each in told.values()], cards)
            for canary in self._client.canaries
        ]
        return JSONResponse({"canaries": canaries})

    async def _ask_all(self, method: str) -> list[Any]:
        """Return what all ingress replicas answer; nothing where they cannot be asked in time."""
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        with suppress(RayError, RayServeException, TimeoutError):
            answering = handle.broadcast(method).results_async(timeout_s=_PEER_S, return_exceptions=True)
            return [answer for answer in await answering if not isinstance(answer, BaseException)]
        return []

    async def drain(self, reason: str) -> None:
        """Turn readiness red and refuse new requests; those under way go on."""
        self._client.drain(reason)

    async def num_under_way(self) -> int:
        """Return how many requests are not answered to their end."""
        return self._num_under_way

    async def stop(self, reason: str) -> None:
        """Fail what is still under way: each ends in an error that gives the reason."""
        self._client.stop(reason)


def ingress_deployment(**options: Any) -> Any:
    """Return Ray's deployment of the ingress, with Ray's own options."""
    return serve.deployment(serve.ingress()(Ingress), **options)


def _replicas(plan: IngressPlan, handles: Sequence[Any]) -> dict[str, Replicas]:
    return {
        model.card.name: Replicas(handle, handle.options(stream=True), watch_of(model.deployment), _hold(model))
        for model, handle in zip(plan.models, handles, strict=True)
    }


def _hold(model: PlannedModel) -> Hold | None:
    if not model.max_held_requests:
        return None
    return Hold(model.card.name, model.max_held_requests, model.hold_timeout_s)


def _for_proxy(send: Send) -> Send:
    """Return a channel that makes an answer known to Ray's proxy, and leaves out the id, which the proxy writes."""

    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            del headers[REQUEST_ID]
            headers[MARK] = "1"
        await send(message)

    return send_marked
