"""Images that a request names by URL, fetched where the operator lists their hosts.

A name is resolved once, every address that it has is judged, and the connection goes to one that was judged: a name
that leads elsewhere a moment later (DNS rebinding) changes nothing. What comes is bounded in bytes and in time while it
comes, no redirect is followed, no proxy of the environment is asked, and what it is, its bytes say.

Imported where hosts are listed alone: httpx takes 5 MiB, for a client that most servers have no use for.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import httpx

from bundle.errors import ImageError
from serving.access.hosts import AllowedHost, is_reachable, plain_host, port_of
from serving.access.settings import RemoteSettings
from serving.api.budget import BodyShare
from serving.api.disconnect import finish_within
from serving.api.remote_urls import RemoteUrls
from serving.api.validation import shown

_AT_ONCE = 4
"""Images of one request that are fetched at the same time."""
_MOST_ADDRESSES = 4
"""Of one name that are tried, one after another."""
_RESOLVERS = 8
_OK = 200

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True)
class _Place:
    """Where a URL leads: what is sent, and whom it is asked of."""

    url: httpx.URL
    scheme: str
    host: str
    port: int


class RemoteImages:
    """Fetches images from the hosts that are listed. Used from one event loop.

    Args:
        settings: Hosts, networks, time.
        max_bytes: Of one image.
        resolve: Returns the addresses of a host; the system's, unless a test has its own.
    """

    def __init__(self, settings: RemoteSettings, max_bytes: int, resolve: Resolve | None = None) -> None:
        self._hosts = [AllowedHost.read(text) for text in settings.hosts]
        self._networks = settings.private_networks
        self._timeout_s = settings.timeout_s
        self._max_bytes = max_bytes
        self._resolve = resolve or self._by_the_system

    async def fetch(self, urls: RemoteUrls, share: BodyShare) -> None:
        """Fetch what a request wants; all of it is checked before any of it is asked for.

        Args:
            urls: `fetched` gets what `wanted` names.
            share: Grows by what comes.

        Raises:
            ImageError: A host is not listed or leads to an address that is not for it, or its image does not come,
                not in time, or is too large.
            OverloadedError: The bodies of all requests together are too large.
        """
        places = {url: self._place(url, param) for url, param in urls.wanted.items()}
        turns = asyncio.Semaphore(_AT_ONCE)

        async def fetch_one(url: str) -> None:
            async with turns:
                urls.fetched[url] = await self._fetched(places[url], urls.wanted[url], share)

        tasks = [asyncio.create_task(fetch_one(url)) for url in places]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        urls.wanted.clear()

    def _place(self, text: str, param: str) -> _Place:
        try:
            url = httpx.URL(text.strip())
        except httpx.InvalidURL as error:
            raise ImageError(f"{shown(text)} is no URL: {error}", param) from error
        if url.userinfo:
            raise ImageError(f"{shown(url.host)}: a URL with a name or a password in it is not fetched", param)
        host = plain_host(url.raw_host.decode("ascii"))
        place = _Place(url, url.scheme, host, port_of(url.scheme, url.port))
        if not any(each.allows(place.scheme, place.host, place.port) for each in self._hosts):
            raise ImageError(
                f"{shown(text)}: images are not fetched from {place.scheme}://{place.host}:{place.port}; the server's "
                "operator lists hosts that they may come from. Send the bytes: data:image/png;base64,...",
                param,
            )
        return place

    async def _fetched(self, place: _Place, param: str, share: BodyShare) -> bytes:
        try:
            return await finish_within(self._timeout_s, self._from_any_address(place, param, share))
        except asyncio.TimeoutError as error:
            raise ImageError(f"{place.host}: the image did not come within {self._timeout_s:g} s", param) from error

    async def _from_any_address(self, place: _Place, param: str, share: BodyShare) -> bytes:
        """Return the image from the first address that is reached."""
        addresses = await self._judged_addresses(place, param)
        fault: Exception | None = None
        for address in addresses[:_MOST_ADDRESSES]:
            try:
                return await self._from_address(place, address, param, share)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                fault = error
            except httpx.HTTPError as error:
                raise ImageError(f"{place.host}: the image did not come: {type(error).__name__}", param) from error
        raise ImageError(f"{place.host} is not reached: {fault}", param) from fault

    async def _judged_addresses(self, place: _Place, param: str) -> Sequence[str]:
        try:
            addresses = await self._resolve(place.host, place.port)
        except (OSError, UnicodeError) as error:
            raise ImageError(f"{place.host} has no address", param) from error
        if not addresses or not all(is_reachable(address, self._networks) for address in addresses):
            raise ImageError(f"{place.host} leads to an address that images are not fetched from", param)
        return addresses

    async def _from_address(self, place: _Place, address: str, param: str, share: BodyShare) -> bytes:
        """Return the image from one address, whatever the name leads to by now."""
        headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "PocketVLM"}
        headers["Host"] = place.url.netloc.decode("ascii")
        pinned = place.url.copy_with(host=address, port=place.port, fragment=None)
        # The name is what the certificate is for
        known_as = {"sni_hostname": place.host}
        transport = httpx.AsyncHTTPTransport(verify=self._authorities, trust_env=False)
        async with (
            httpx.AsyncClient(transport=transport, trust_env=False, timeout=self._timeout_s) as client,
            client.stream("GET", pinned, headers=headers, extensions=known_as, follow_redirects=False) as answer,
        ):
            self._check_head(place, answer, param)
            return await self._read(place, answer, param, share)

    def _check_head(self, place: _Place, answer: httpx.Response, param: str) -> None:
        if answer.is_redirect:
            raise ImageError(f"{place.host} answers with a redirect, and none is followed: send where it leads", param)
        if answer.status_code != _OK:
            raise ImageError(f"{place.host} answers with status {answer.status_code}, and no image", param)
        announced = answer.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise self._too_large(place, announced, param)

    async def _read(self, place: _Place, answer: httpx.Response, param: str, share: BodyShare) -> bytes:
        pieces, num_bytes = list[bytes](), 0
        async for piece in answer.aiter_raw():
            num_bytes += len(piece)
            if num_bytes > self._max_bytes:
                raise self._too_large(place, f"{num_bytes} or more", param)
            share.grow(share.held_bytes + len(piece), 0)
            pieces.append(piece)
        if not num_bytes:
            raise ImageError(f"{place.host}: the image is empty (0 bytes)", param)
        return b"".join(pieces)

    def _too_large(self, place: _Place, told: str, param: str) -> ImageError:
        return ImageError(f"{place.host}: the image holds {told} bytes; at most {self._max_bytes} are taken", param)

    @cached_property
    def _authorities(self) -> ssl.SSLContext:
        """Whom certificates are believed from; read once."""
        return httpx.create_ssl_context()

    @cached_property
    def _resolvers(self) -> ThreadPoolExecutor:
        """Threads of their own: a resolver that hangs keeps nothing else waiting."""
        return ThreadPoolExecutor(_RESOLVERS, "resolve")

    async def _by_the_system(self, host: str, port: int) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._resolvers, _addresses, host, port)


def _addresses(host: str, port: int) -> list[str]:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in infos))
