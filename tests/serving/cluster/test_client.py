"""The client over deployment handles, against handles that fail as Ray's do; no cluster runs."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from pydantic import PydanticDeprecatedSince20

from bundle.errors import (
    EngineDeadError,
    ImageError,
    ModelNotFoundError,
    ModelStartingError,
    OutOfMemoryError,
    OverloadedError,
    PocketVLMError,
)
from serving.api.errors import http_error
from serving.fake import FAKE_VLM
from serving.protocol import (
    ClassifyRequest,
    DetokenizeRequest,
    EmbedRequest,
    FinishedEvent,
    GenerateRequest,
    Message,
    TextPart,
    Timings,
    TokenEvent,
    TokenizeRequest,
    Usage,
    WaitingEvent,
)
from serving.ray_settings import Canary
from serving.tracing import TRACEPARENT

with warnings.catch_warnings():
    # Ray 2.60 declares its own settings in a way that pydantic will drop.
    warnings.simplefilter("ignore", PydanticDeprecatedSince20)
    from ray import exceptions as ray_errors
    from ray.serve import exceptions as serve_errors
    from ray.serve._private.common import DeploymentID

    from serving.cluster import client as client_module
    from serving.cluster.client import RayClient, Replicas
    from serving.cluster.failures import own_error
    from serving.cluster.hold import Hold
    from serving.cluster.watch import ReplicaWatch, tell_caller

DEPLOYMENT = DeploymentID(name="generator-m", app_name="a")
TOKENS = (TokenEvent("a", (1,)), FinishedEvent("stop", Usage(1, 1), Timings()))


class Response:
    """What a handle's call returns: a stream and an awaitable in one, which raises again when it is cancelled late."""

    def __init__(self, events: list[Any], in_lists: bool) -> None:
        self.events = events
        self.in_lists = in_lists
        self.is_cancelled = False

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> Any:
        if not self.events:
            raise StopAsyncIteration
        event = self.events.pop(0)
        if callable(event):
            event = await event()
        if isinstance(event, BaseException):
            self.failure = event
            raise event
        return [event] if self.in_lists else event

    def __await__(self) -> Any:
        return self.__anext__().__await__()

    def cancel(self) -> None:
        self.is_cancelled = True
        if hasattr(self, "failure"):
            raise self.failure


class Handle:
    """A deployment handle whose calls answer, each in turn, with one list of events."""

    def __init__(self, *answers: list[Any]) -> None:
        self.answers = list(answers)
        self.responses: list[Response] = []
        self.taken_by: str | None = None
        self.asked: list[Any] = []

    @property
    def stream(self) -> Any:
        """The same handle, whose calls answer in lists, as replicas gather them."""
        return SimpleNamespace(generate=SimpleNamespace(remote=lambda request: self._call(request, in_lists=True)))

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=self._call)

    def _call(self, request: Any, *, in_lists: bool = False) -> Response:
        if self.taken_by is not None and not self.responses:
            tell_caller(self.taken_by)
        self.asked.append(request)
        self.responses.append(Response(self.answers.pop(0), in_lists))
        return self.responses[-1]


def client_of(handle: Handle, watch: ReplicaWatch | None = None, patience_s: float = 60) -> RayClient:
    return RayClient([], {"m": Replicas(handle, handle.stream, watch or watch_over("a"))}, patience_s)


def watch_over(*replicas: str, **report: Any) -> ReplicaWatch:
    watch = ReplicaWatch()
    watch.begin_round(dict.fromkeys(replicas, report))
    return watch


def silence(watch: ReplicaWatch, replica: str) -> None:
    """Let all but one replica answer until that one counts as silent."""
    while not watch.is_silent(replica):
        running = watch._running
        watch.begin_round({each: {} for each in running})
        for each in running - {replica}:
            watch.hear(each)


async def chat(client: RayClient) -> list[Any]:
    return [event async for event in client.generate(GenerateRequest("r", "m", (Message("user", (TextPart("x"),)),)))]


async def embed(client: RayClient) -> Any:
    return await client.embed(EmbedRequest("r", "m", (TextPart("x"),)))


async def classify(client: RayClient) -> Any:
    return await client.classify(ClassifyRequest("r", "m", (), ("x",)))


async def tokenize(client: RayClient) -> Any:
    return await client.tokenize(TokenizeRequest("r", "m", text="x"))


async def detokenize(client: RayClient) -> Any:
    return await client.detokenize(DetokenizeRequest("r", "m", (1,)))


Call = Callable[[RayClient], Awaitable[Any]]
CALLS = pytest.mark.parametrize("call", [chat, embed, classify, tokenize, detokenize])


@CALLS
@pytest.mark.parametrize(
    ("error", "expected", "status"),
    [
        (serve_errors.BackPressureError(64, 64), OverloadedError, 429),
        (ray_errors.PendingCallsLimitExceeded("full"), OverloadedError, 429),
        (serve_errors.DeploymentUnavailableError(DEPLOYMENT), EngineDeadError, 503),
        (serve_errors.ReplicaUnavailableError("r"), EngineDeadError, 503),
        (serve_errors.RequestCancelledError("r"), EngineDeadError, 503),
        (ray_errors.ActorDiedError(), EngineDeadError, 503),
        (ray_errors.ActorUnavailableError("away", None), EngineDeadError, 503),
        (asyncio.CancelledError(), EngineDeadError, 503),
        (AioRpcError(StatusCode.CANCELLED, Metadata(), Metadata()), EngineDeadError, 503),
        (AioRpcError(StatusCode.RESOURCE_EXHAUSTED, Metadata(), Metadata()), RuntimeError, 500),
        (ray_errors.OutOfMemoryError("killed"), OutOfMemoryError, 503),
        (ray_errors.ObjectStoreFullError("full"), OutOfMemoryError, 503),
        (ray_errors.RayTaskError("f", "trace", ImageError("no image", "x")), ImageError, 400),
        (ray_errors.RayTaskError("f", "trace", serve_errors.BackPressureError(1, 1)), OverloadedError, 429),
        (ray_errors.RayTaskError("f", "trace", KeyError("bug")), RuntimeError, 500),
        (serve_errors.RayServeException("unforeseen"), RuntimeError, 500),
        (ValueError("unforeseen"), RuntimeError, 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_ray_raises_is_told_in_our_words(call: Call, error: BaseException, expected: type, status: int) -> None:
    """The response raises its error again when it is cancelled, as Ray's do for what failed before a replica had it."""
    with pytest.raises(expected) as caught:
        asyncio.run(call(client_of(Handle([error], [error]))))
    assert type(caught.value) is expected
    assert http_error(caught.value).status == status


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


@pytest.mark.parametrize("kind", [ray_errors.RayError, serve_errors.RayServeException])
def test_no_class_of_rays_reaches_the_application(kind: type) -> None:
    """Ray would answer some of its own classes itself, in another form."""
    for each in subclasses(kind):
        # Most cannot be made, or written out, without what Ray alone has.
        nameless = type(each.__name__, (each,), {"__str__": lambda self: "nameless"})
        error = nameless.__new__(nameless)
        error.cause = KeyError()
        told = own_error(error)
        assert isinstance(told, (PocketVLMError, RuntimeError)), each
        assert not isinstance(told, (ray_errors.RayError, serve_errors.RayServeException)), each


def test_an_answer_comes_through_whole_and_nothing_is_cancelled_after_it() -> None:
    handle = Handle(list(TOKENS))
    assert asyncio.run(chat(client_of(handle))) == list(TOKENS)
    assert not handle.responses[0].is_cancelled


def test_an_unknown_model_is_refused_without_a_call() -> None:
    handle = Handle()
    with pytest.raises(ModelNotFoundError):
        asyncio.run(chat(RayClient([], {"other": Replicas(handle, handle.stream, ReplicaWatch())}, 60)))
    assert handle.responses == []


def test_an_adapter_is_asked_of_its_models_replicas_and_of_a_canarys_variant() -> None:
    cards = [
        replace(FAKE_VLM, name="m", adapters=("french", "legal")),
        replace(FAKE_VLM, name="n", adapters=("legal",)),
    ]
    handle = Handle(*([*TOKENS] for _ in range(3)))
    replicas = Replicas(handle, handle.stream, watch_over("a"))
    client = RayClient(cards, {"m": replicas, "n": replicas}, 60)
    variants = [{"model": "m", "weight": 0}, {"model": "n", "weight": 100}]
    client.split([Canary.model_validate({"name": "c", "variants": variants})])
    found = [f"{card.parent or ''}/{card.name}" for card in asyncio.run(client.models())]
    assert found == ["/m", "m/french", "m/m:legal", "/n", "n/n:legal", "/c", "c/c:legal"]

    async def ask(model: str) -> None:
        async for _ in client.generate(GenerateRequest("r", model, ())):
            pass

    for model in ("french", "n:legal", "c:legal"):
        asyncio.run(ask(model))
    assert [(each.model, each.adapter) for each in handle.asked] == [("m", "french"), ("n", "legal"), ("n", "legal")]
    with pytest.raises(ModelNotFoundError, match="there are m, n, french, m:legal, n:legal, c, c:legal"):
        asyncio.run(ask("legal"))


def test_closing_the_iterator_cancels_the_replicas_work() -> None:
    handle = Handle([*TOKENS])

    async def leave() -> None:
        events = client_of(handle).generate(GenerateRequest("r", "m", ()))
        await anext(events)
        await events.aclose()

    asyncio.run(leave())
    assert handle.responses[0].is_cancelled


async def never() -> None:
    await asyncio.sleep(60)


@CALLS
def test_a_cancelled_caller_is_told_so_and_the_replicas_work_is_cancelled(call: Call) -> None:
    handle = Handle([never])

    async def leave() -> None:
        waiting = asyncio.ensure_future(call(client_of(handle)))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await waiting

    started_s = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(leave())
    assert handle.responses[0].is_cancelled
    assert time.monotonic() - started_s < 30


GONE = ray_errors.ActorDiedError()


@CALLS
def test_a_request_of_a_replica_that_died_goes_to_another(call: Call) -> None:
    handle = Handle([GONE], [TOKENS[-1]])
    assert asyncio.run(call(client_of(handle))) in (TOKENS[-1], [TOKENS[-1]])
    assert len(handle.responses) == 2


@CALLS
def test_a_request_takes_no_more_than_two_replicas_with_it(call: Call) -> None:
    handle = Handle([GONE], [GONE], [TOKENS[-1]])
    with pytest.raises(EngineDeadError, match="send it again"):
        asyncio.run(call(client_of(handle)))
    assert len(handle.responses) == 2


def test_an_answer_that_was_begun_fails_with_its_replica() -> None:
    """Another replica would tell the beginning a second time."""
    handle = Handle([TOKENS[0], GONE], list(TOKENS))
    with pytest.raises(EngineDeadError):
        asyncio.run(chat(client_of(handle)))
    assert len(handle.responses) == 1


@CALLS
def test_what_a_replica_refuses_is_not_sent_to_another(call: Call) -> None:
    handle = Handle([ray_errors.RayTaskError("f", "trace", EngineDeadError("its engine hangs"))], list(TOKENS))
    with pytest.raises(EngineDeadError, match="its engine hangs"):
        asyncio.run(call(client_of(handle)))
    assert len(handle.responses) == 1


@CALLS
@pytest.mark.parametrize("is_taken", [True, False], ids=["taken", "not taken"])
def test_a_request_of_a_replica_that_falls_silent_goes_to_another(call: Call, is_taken: bool) -> None:
    watch = watch_over("stopped", "well")

    async def stop() -> None:
        silence(watch, "stopped")
        await never()

    handle = Handle([stop], [TOKENS[-1]])
    handle.taken_by = "stopped" if is_taken else None
    assert asyncio.run(call(client_of(handle, watch))) in (TOKENS[-1], [TOKENS[-1]])
    assert [each.is_cancelled for each in handle.responses] == [True, False]


def test_an_answer_under_way_fails_when_its_replica_falls_silent_and_no_other_does() -> None:
    watch = watch_over("stopped", "well")

    async def stop() -> Any:
        silence(watch, "stopped")
        await asyncio.sleep(2)
        return TOKENS[-1]

    def ended_on(replica: str) -> Any:
        handle = Handle([TOKENS[0], stop])
        handle.taken_by = replica
        return asyncio.run(chat(client_of(handle, watch)))

    assert ended_on("well") == list(TOKENS)
    with pytest.raises(EngineDeadError, match="silent for 5 s"):
        ended_on("stopped")


def test_a_request_that_waits_in_a_full_queue_is_left_there() -> None:
    async def take_long() -> Any:
        await asyncio.sleep(2)
        return TOKENS[-1]

    assert asyncio.run(chat(client_of(Handle([take_long]), patience_s=0.5))) == [TOKENS[-1]]


@CALLS
@pytest.mark.parametrize(
    ("watch", "reason"),
    [
        (ReplicaWatch(), "no replica runs"),
        (watch_over("a", is_ready=False, reason="the decoder hangs"), "the decoder hangs"),
    ],
    ids=["none", "unready"],
)
def test_a_request_that_no_replica_can_take_fails_after_a_while(call: Call, watch: ReplicaWatch, reason: str) -> None:
    handle = Handle([never])
    with pytest.raises(EngineDeadError, match=reason):
        asyncio.run(call(client_of(handle, watch, patience_s=0.5)))
    assert [each.is_cancelled for each in handle.responses] == [True]


@CALLS
def test_a_client_that_drains_takes_nothing_new_and_one_that_stops_ends_what_it_has(call: Call) -> None:
    handle = Handle([never])
    client = client_of(handle)

    async def stop() -> list[Any]:
        under_way = asyncio.ensure_future(call(client))
        await asyncio.sleep(0.05)
        client.drain("it drains")
        refused = await asyncio.gather(call(client), return_exceptions=True)
        assert not under_way.done()
        client.stop("it stops")
        return refused + await asyncio.gather(under_way, return_exceptions=True)

    assert [(type(each), str(each)) for each in asyncio.run(stop())] == [
        (EngineDeadError, "it drains"),
        (EngineDeadError, "it stops"),
    ]
    assert [each.is_cancelled for each in handle.responses] == [True]
    assert asyncio.run(client.health()).reason == "it stops"


def test_an_answer_whose_pieces_keep_coming_ends_when_the_client_stops() -> None:
    client = client_of(Handle([TOKENS[0]] * 100))

    async def stop() -> None:
        events = client.generate(GenerateRequest("r", "m", ()))
        await anext(events)
        client.stop("it stops")
        with pytest.raises(EngineDeadError, match="it stops"):
            await anext(events)

    asyncio.run(stop())


def test_health_is_that_of_the_replicas_which_answer() -> None:
    watch = watch_over("a", "b")
    client = RayClient([], {"m": Replicas(Handle(), Handle().stream, watch)}, 60)
    assert asyncio.run(client.health()).is_ready
    silence(watch, "a")
    assert asyncio.run(client.health()).is_ready
    silence(watch, "b")
    health = asyncio.run(client.health())
    assert (health.is_ready, health.is_alive) == (True, True)  # "a" answered again meanwhile
    while watch.has_fit:
        watch.begin_round({"a": {}, "b": {}})
    health = asyncio.run(client.health())
    assert (health.is_ready, health.is_alive) == (False, True)
    assert health.reason == "m: a replica has been silent for more than 5 s"


def test_a_replica_that_could_not_be_reached_is_passed_over_until_it_answers() -> None:
    watch = watch_over("a", "b")
    watch.doubt("a")
    assert (watch.is_fit("a"), watch.is_silent("a"), watch.has_fit) == (False, False, True)
    watch.begin_round({"a": {}, "b": {}})
    assert not watch.is_fit("a")
    watch.hear("a")
    assert watch.is_fit("a")
    watch.doubt("a")
    watch.doubt("b")
    assert watch.reason == "a replica cannot be reached"


def test_an_unready_model_is_named() -> None:
    client = RayClient([], {"m": Replicas(Handle(), Handle().stream, ReplicaWatch())}, 60)
    assert asyncio.run(client.health()).reason == "m: no replica runs"


def test_gauges_are_those_of_all_replicas_together() -> None:
    watch = ReplicaWatch()
    reports = [
        {"is_ready": True, "reason": "", "gauges": {"num_requests_running": 2.0, "kv_cache_usage_perc": 0.5}},
        {"is_ready": True, "reason": "", "gauges": {"num_requests_running": 1.0, "kv_cache_usage_perc": 0.75}},
        {},  # has not reported yet
    ]
    watch.begin_round(dict(zip("abc", reports, strict=True)))
    client = RayClient([], {"m": Replicas(Handle(), Handle().stream, watch)}, 60)
    health = asyncio.run(client.health())
    assert health.model_gauges == {"m": {"num_requests_running": 3.0, "kv_cache_usage_perc": 0.75, "num_replicas": 3.0}}
    assert health.replica_gauges == {"m": {"a": reports[0]["gauges"], "b": reports[1]["gauges"]}}


def held_client(handle: Handle, watch: ReplicaWatch, max_requests: int = 1, timeout_s: float = 60) -> RayClient:
    hold = Hold("m", max_requests, timeout_s)
    return RayClient([], {"m": Replicas(handle, handle.stream, watch, hold)}, 0.01)


@CALLS
def test_a_request_for_a_model_without_replicas_waits_for_the_first(call: Call, monkeypatch: Any) -> None:
    monkeypatch.setattr(client_module, "_TELL_S", 0.01)

    async def load() -> Any:
        await asyncio.sleep(0.1)
        return TOKENS[-1]

    told = asyncio.run(call(held_client(Handle([load]), ReplicaWatch())))
    if isinstance(told, list):
        assert told[-1] == TOKENS[-1]
        assert len(told) > 3
        assert set(told[:-1]) == {WaitingEvent("m was not asked for in a while and is being loaded")}
    else:
        assert told == TOKENS[-1]


@CALLS
def test_more_than_the_places_are_refused_until_one_is_free(call: Call) -> None:
    handle = Handle([never], [TOKENS[-1]])
    client = held_client(handle, ReplicaWatch())

    async def crowd() -> None:
        first = asyncio.ensure_future(call(client))
        await asyncio.sleep(0.05)
        with pytest.raises(ModelStartingError, match="1 requests wait") as caught:
            await call(client)
        assert http_error(caught.value).status == 503
        first.cancel()
        await asyncio.wait((first,))
        await call(client)

    asyncio.run(crowd())
    assert [each.is_cancelled for each in handle.responses] == [True, False]


def test_nothing_is_held_while_a_replica_runs() -> None:
    handle = Handle(*([TOKENS[-1]] for _ in range(3)))
    assert asyncio.run(chat(held_client(handle, watch_over("a"), max_requests=0))) == [TOKENS[-1]]


@CALLS
def test_a_model_that_does_not_come_is_waited_for_no_longer_than_told(call: Call) -> None:
    with pytest.raises(EngineDeadError, match=r"nothing took it for 0\.6 s: no replica runs"):
        asyncio.run(call(held_client(Handle([never]), ReplicaWatch(), timeout_s=0.6)))


def test_a_model_that_may_have_no_replica_is_ready_without_and_not_with_a_silent_one() -> None:
    watch = ReplicaWatch()
    client = held_client(Handle(), watch)
    assert asyncio.run(client.health()).is_ready
    watch.begin_round({"a": {}})
    while not watch.is_silent("a"):
        watch.begin_round({"a": {}})
    assert not asyncio.run(client.health()).is_ready


def test_a_request_tells_the_replica_which_trace_it_is_part_of() -> None:
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    handle = Handle(list(TOKENS), list(TOKENS), ["embedded"])

    async def ask_all() -> None:
        client, request = client_of(handle), GenerateRequest("r", "m", ())
        [_ async for _ in client.generate(request)]
        TRACEPARENT.set(traceparent)
        [_ async for _ in client.generate(request)]
        await client.embed(EmbedRequest("r", "m", ()))

    asyncio.run(ask_all())
    assert [request.traceparent for request in handle.asked] == ["", traceparent, traceparent]
