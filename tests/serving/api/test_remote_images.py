"""Images named by URL: fetched from listed hosts alone, from addresses that were judged, within bytes and time."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import ImageError, OverloadedError
from serving.access.settings import RemoteSettings
from serving.api import remote_images
from serving.api.budget import BodyBudget
from serving.api.remote_images import RemoteImages
from serving.api.remote_urls import RemoteUrls
from serving.fake import FakeClient
from serving.protocol import ImagePart, TextPart, VideoPart

CHAT = "/v1/chat/completions"
LOOPBACK = (ip_network("127.0.0.0/8"),)
RED = b"\x89PNG"


class Handler(BaseHTTPRequestHandler):
    """Answers by path; `/image` with what the test wants as an image."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Host"], dict(self.headers)))
        path = self.path.partition("?")[0]
        if path == "/redirect":
            self.answer(302, b"", location=f"http://localhost:{self.server.server_port}/image")
        elif path == "/absent":
            self.answer(404, b"none")
        elif path == "/large":
            self.answer(200, b"x" * 5000)
        elif path == "/endless":
            self.drip(b"x" * 1000, 0.0)
        elif path == "/slow":
            self.drip(b"x", 0.05)
        elif path == "/empty":
            self.answer(200, b"")
        else:
            self.answer(200, self.server.image, content_type="text/html")  # the bytes decide

    def answer(self, status: int, content: bytes, content_type: str = "image/png", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": content_type, "content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def drip(self, piece: bytes, pause_s: float) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while not self.server.is_over.wait(pause_s):
                self.wfile.write(piece)
        except OSError:
            return

    def log_message(self, *arguments: Any) -> None:
        return


@pytest.fixture
def elsewhere(png: bytes) -> Iterator[Any]:
    """Another server, on the loopback."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.image, server.is_over = [], png, threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.is_over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def url(server: Any, path: str = "/image", host: str = "localhost") -> str:
    return f"http://{host}:{server.server_port}{path}"


def settings(server: Any, **fields: Any) -> RemoteSettings:
    return RemoteSettings(**{"hosts": (url(server, ""),), "private_networks": LOOPBACK, **fields})


def fetched(images: RemoteImages, *urls: str, budget: BodyBudget | None = None) -> dict[str, bytes]:
    """Return what URLs held."""

    async def fetch() -> dict[str, bytes]:
        wanted = RemoteUrls({each: f"field.{place}" for place, each in enumerate(urls)})
        with (budget or BodyBudget(1 << 20)).share() as share:
            await images.fetch(wanted, share)
            assert share.held_bytes == sum(map(len, wanted.fetched.values()))
        assert not wanted.wanted
        return wanted.fetched

    return asyncio.run(fetch())


@pytest.fixture
def api(make_caller: Callable[..., Any], elsewhere: Any) -> Any:
    return make_caller(remote=settings(elsewhere))


def test_nothing_is_fetched_by_default(make_caller: Callable[..., Any], elsewhere: Any, ask: Any) -> None:
    part = {"type": "image_url", "image_url": {"url": url(elsewhere)}}
    answer = make_caller().post(CHAT, ask([part]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_image")
    assert "fetches no remote images" in answer.json()["error"]["message"]
    assert not elsewhere.asked


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "URL"}}]}]}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "URL"}]}]}),
        (
            "/v1/messages",
            {
                "max_tokens": 5,
                "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "URL"}}]}],
            },
        ),
        ("/v1/embeddings", {"input": ["a", {"type": "image_url", "image_url": {"url": "URL"}}]}),
        ("/v1/classify", {"images": [{"type": "image_url", "image_url": {"url": "URL"}}], "labels": ["a", "b"]}),
        ("/v1/rerank", {"query": {"image": "URL"}, "documents": ["a", "b"]}),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "URL"}}]}]},
        ),
    ],
)
def test_every_route_with_images_takes_a_url(api: Any, elsewhere: Any, path: str, body: dict[str, Any]) -> None:
    named = json.loads(json.dumps(body).replace("URL", url(elsewhere)))
    answer = api.post(path, {**named, **({"model": "fake-vlm"} if path == "/tokenize" else {})})
    assert answer.status_code == 200, answer.text
    assert [asked[0] for asked in elsewhere.asked] == ["/image"]


def test_the_same_url_is_fetched_once_and_images_keep_their_places(
    api: Any, elsewhere: Any, engine: FakeClient, ask: Any, image_part: Any, png: bytes
) -> None:
    remote = {"type": "image_url", "image_url": {"url": url(elsewhere)}}
    assert api.post(CHAT, ask([remote, {"type": "text", "text": "and"}, remote, image_part(png)])).status_code == 200
    (message,) = engine.generations[-1].messages
    assert [isinstance(part, ImagePart) for part in message.parts] == [True, False, True, True]
    assert {part.data for part in message.parts if isinstance(part, ImagePart)} == {png}
    assert len(elsewhere.asked) == 1


def test_frames_of_a_list_are_fetched_and_a_video_is_not(
    api: Any, elsewhere: Any, engine: FakeClient, ask: Any
) -> None:
    frames = {"type": "video", "video": [url(elsewhere, "/image?1"), url(elsewhere, "/image?2")]}
    assert api.post(CHAT, ask([frames])).status_code == 200
    (video,) = [part for part in engine.generations[-1].messages[0].parts if isinstance(part, VideoPart)]
    assert len(video.files) == 2
    refused = api.post(CHAT, ask([{"type": "video_url", "video_url": {"url": url(elsewhere)}}]))
    assert "no remote videos" in refused.json()["error"]["message"]


def test_a_prefix_keeps_what_its_urls_hold(
    make_caller: Callable[..., Any], elsewhere: Any, engine: FakeClient, ask: Any, tmp_path: Path, png: bytes
) -> None:
    api, place = make_caller(remote=settings(elsewhere), prefix_folder=tmp_path), url(elsewhere)
    remote = {"type": "image_url", "image_url": {"url": place}}
    shown = ask([remote, {"type": "text", "text": place}, remote, {"type": "video", "video": [place]}])
    made = api.post("/v1/prefixes", {**shown, "name": "shown"})
    assert made.status_code == 200, made.text
    assert api.post(CHAT, {**ask("what"), "prefix": "shown"}).status_code == 200
    making, behind = (request.messages[0] for request in engine.generations)
    assert behind == making
    assert {part.data for part in behind.parts if isinstance(part, ImagePart)} == {png}
    assert [part.text for part in behind.parts if isinstance(part, TextPart)] == [place]
    assert len(elsewhere.asked) == 1
    assert made.json()["size_bytes"] > 3 * len(png) * 4 // 3


def test_a_prefix_whose_urls_hold_too_much_is_refused(
    make_caller: Callable[..., Any], elsewhere: Any, engine: FakeClient, ask: Any, tmp_path: Path
) -> None:
    elsewhere.image = b"x" * 1000
    api = make_caller(remote=settings(elsewhere), prefix_folder=tmp_path, max_prefix_bytes=10_000)
    remote = {"type": "image_url", "image_url": {"url": url(elsewhere)}}
    refused = api.post("/v1/prefixes", {**ask([remote] * 8), "name": "large"})
    assert refused.status_code == 400
    assert "api.max_prefix_bytes" in refused.json()["error"]["message"]
    assert not engine.generations


def test_what_is_fetched_is_an_image_by_its_bytes_whatever_its_server_says(api: Any, elsewhere: Any, ask: Any) -> None:
    part = {"type": "image_url", "image_url": {"url": url(elsewhere)}}
    assert api.post(CHAT, ask([part])).status_code == 200  # sent as text/html
    elsewhere.image = b"<html>no image</html>"
    answer = api.post(CHAT, ask([part]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_image")


def test_too_many_images_are_refused_before_any_is_fetched(make_caller: Any, elsewhere: Any, ask: Any) -> None:
    parts = [{"type": "image_url", "image_url": {"url": url(elsewhere, f"/image?{n}")}} for n in range(3)]
    api = make_caller(remote=settings(elsewhere), max_images=2)
    assert "3 images" in api.post(CHAT, ask(parts)).json()["error"]["message"]
    assert not elsewhere.asked


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/redirect", "answers with a redirect, and none is followed"),
        ("/absent", "answers with status 404"),
        ("/large", "holds 5000 bytes; at most 4000"),
        ("/endless", "or more bytes; at most 4000"),
        ("/slow", "did not come within 0.5 s"),
        ("/empty", "is empty"),
    ],
)
def test_what_does_not_come_as_it_should_is_refused(elsewhere: Any, path: str, named: str) -> None:
    started_s = time.monotonic()
    images = RemoteImages(settings(elsewhere, timeout_s=0.5 if path == "/slow" else 30), 4000)
    with pytest.raises(ImageError, match=named) as refused:
        fetched(images, url(elsewhere, path))
    assert refused.value.param == "field.0"
    assert [asked[0] for asked in elsewhere.asked] == [path]  # a redirect leads nowhere
    assert time.monotonic() - started_s < 20


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("https://localhost:{port}/image", "images are not fetched from https://localhost"),
        ("http://localhost/image", "images are not fetched from http://localhost:80"),
        ("http://localhost.evil.com:{port}/", "images are not fetched from http://localhost.evil.com"),
        ("http://localhost:{port}@evil.com/", "a name or a password"),
        ("http://evil.com#@localhost:{port}/", "images are not fetched from http://evil.com"),
        ("http://evil.com\\@localhost:{port}/", "not fetched|no URL|a name or a password"),
        ("http://127.0.0.1:{port}/", "images are not fetched from http://127.0.0.1"),
        ("http://2130706433:{port}/", "images are not fetched from http://2130706433"),
        ("http://[::ffff:7f00:1]:{port}/", "images are not fetched from"),
        ("http://local\nhost:{port}/", "is no URL"),
        ("http:", "images are not fetched from|is no URL"),
        ("http://:{port}/", "images are not fetched from|is no URL"),
    ],
)
def test_a_url_to_any_other_place_is_refused_before_anything_is_asked(elsewhere: Any, text: str, named: str) -> None:
    images = RemoteImages(settings(elsewhere), 4000)
    with pytest.raises(ImageError, match=named):
        fetched(images, url(elsewhere), text.replace("{port}", str(elsewhere.server_port)))
    assert not elsewhere.asked


def test_a_listed_host_that_leads_to_a_private_address_is_refused(elsewhere: Any) -> None:
    images = RemoteImages(settings(elsewhere, private_networks=()), 4000)
    with pytest.raises(ImageError, match="localhost leads to an address that images are not fetched from"):
        fetched(images, url(elsewhere))
    assert not elsewhere.asked


def test_one_private_address_among_public_ones_is_enough_to_refuse(elsewhere: Any) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.216.34", "169.254.169.254"]

    with pytest.raises(ImageError, match="leads to an address"):
        fetched(RemoteImages(settings(elsewhere), 4000, resolve), url(elsewhere))


def test_a_name_is_resolved_once_and_the_connection_goes_where_it_was_judged(
    elsewhere: Any, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rebinding: the second answer for the name would be another address. The name still reaches the server."""
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers.pop(0)

    names: list[Any] = []
    lookup = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: names.append(host) or lookup(host, *rest, **more)
    )
    name = "rebinding.example"
    images = RemoteImages(settings(elsewhere, hosts=(url(elsewhere, "", name),)), 4000, resolve)
    assert fetched(images, url(elsewhere, host=name)) == {url(elsewhere, host=name): png}
    assert asked == [name]
    assert name not in names  # nobody below has looked it up again
    assert elsewhere.asked[0][1] == f"{name}:{elsewhere.server_port}"


def test_the_certificate_is_held_against_the_name_and_not_the_address(
    elsewhere: Any, png: bytes, tmp_path: Path, write_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    name = "images.example"
    pair = write_pair(tmp_path, dns=name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.tls_certificate, pair.tls_key)
    elsewhere.socket = context.wrap_socket(elsewhere.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(pair.tls_certificate))
    own, other = (f"https://{host}:{elsewhere.server_port}/image" for host in (name, "other.example"))
    hosts = tuple(each.removesuffix("/image") for each in (own, other))
    images = RemoteImages(settings(elsewhere, hosts=hosts), 4000, resolve)
    assert fetched(images, own) == {own: png}
    with pytest.raises(ImageError, match=r"other\.example is not reached: .*certificate verify failed"):
        fetched(images, other)


def test_another_address_is_tried_where_one_is_not_reached(elsewhere: Any, png: bytes) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.77", "127.0.0.1"]  # nothing listens at the first

    assert fetched(RemoteImages(settings(elsewhere), 4000, resolve), url(elsewhere)) == {url(elsewhere): png}


def test_nothing_of_the_caller_or_the_environment_goes_along(
    elsewhere: Any, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    fetched(RemoteImages(settings(elsewhere), 4000), url(elsewhere))
    headers = {name.lower(): value for name, value in elsewhere.asked[0][2].items()}
    assert not {"authorization", "cookie", "x-api-key", "referer"} & set(headers)
    assert headers["accept-encoding"] == "identity"  # what is counted is what is kept


def test_a_hanging_resolver_is_given_up(elsewhere: Any) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    with pytest.raises(ImageError, match=r"did not come within 0\.2 s"):
        fetched(RemoteImages(settings(elsewhere, timeout_s=0.2), 4000, resolve), url(elsewhere))


def test_a_name_without_an_address_is_told(elsewhere: Any) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    with pytest.raises(ImageError, match="localhost has no address"):
        fetched(RemoteImages(settings(elsewhere), 4000, resolve), url(elsewhere))


def test_what_is_fetched_counts_among_the_bodies_that_are_held(elsewhere: Any) -> None:
    budget = BodyBudget(100)
    elsewhere.image = b"x" * 200
    with pytest.raises(OverloadedError):
        fetched(RemoteImages(settings(elsewhere), 4000), url(elsewhere), budget=budget)
    assert budget.held_bytes == 0


def test_one_image_that_fails_stops_the_others(elsewhere: Any) -> None:
    images = RemoteImages(settings(elsewhere, timeout_s=30), 1 << 30)
    started_s = time.monotonic()
    with pytest.raises(ImageError, match="404"):
        fetched(images, url(elsewhere, "/slow"), url(elsewhere, "/absent"), budget=BodyBudget(1 << 30))
    assert time.monotonic() - started_s < 20


def test_few_images_of_one_request_are_fetched_at_once(elsewhere: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running = most = 0

    async def one(self: Any, *arguments: Any) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return b""

    monkeypatch.setattr(RemoteImages, "_fetched", one)
    fetched(RemoteImages(settings(elsewhere), 4000), *(url(elsewhere, f"/{n}") for n in range(12)))
    assert most == remote_images._AT_ONCE
