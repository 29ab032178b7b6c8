"""The HTTP application in a replica of Ray's: what differs from the same application on uvicorn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray import serve
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.app import create_app
from serving.api.record import REQUEST_ID
from serving.cluster.client import RayClient, Replicas
from serving.cluster.proxy import MARK
from serving.cluster.watch import watch_of
from serving.protocol import ModelCard
from serving.settings import ApiSettings

_PROBES = ("GET", "HEAD")


@dataclass(frozen=True)
class IngressPlan:
    """What an ingress replica serves; pickled on the way there.

    Attributes:
        cards: Of the models, in order.
        deployments: Of each model, the name that Ray knows.
        api: Limits of a request.
        patience_s: How long a request waits while its model has no replica.
    """

    cards: tuple[ModelCard, ...]
    deployments: tuple[str, ...]
    api: ApiSettings
    patience_s: float


class Ingress:
    """The HTTP application over the models' deployments, and a hand on its drain.

    Args:
        plan: What is served.
        handles: Of the models' deployments, in the plan's order.
    """

    def __init__(self, plan: IngressPlan, *handles: Any) -> None:
        self._client = RayClient(plan.cards, _replicas(plan, handles), plan.patience_s)
        self._api = plan.api
        self._num_under_way = 0

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application; called by Ray once."""
        app = create_app(self._client, self._api)

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            is_work = scope["type"] == "http" and scope["method"] not in _PROBES
            self._num_under_way += is_work
            try:
                await app(scope, receive, _for_proxy(send))
            finally:
                self._num_under_way -= is_work

        return counted

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
    named = zip(plan.cards, plan.deployments, handles, strict=True)
    return {
        card.name: Replicas(handle, handle.options(stream=True), watch_of(deployment))
        for card, deployment, handle in named
    }


def _for_proxy(send: Send) -> Send:
    """Return a channel that makes an answer known to Ray's proxy, and leaves out the id, which the proxy writes."""

    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            del headers[REQUEST_ID]
            headers[MARK] = "1"
        await send(message)

    return send_marked
