"""URLs of images that a request names: met while its body is read, and fetched before it is read again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from bundle.errors import ImageError
from serving.api.validation import shown


@dataclass
class RemoteUrls:
    """The remote images of one request.

    Attributes:
        wanted: URLs that were met and are not here yet -> the field that holds each.
        fetched: What they held.
    """

    wanted: dict[str, str] = field(default_factory=dict)
    fetched: dict[str, bytes] = field(default_factory=dict)

    def data_of(self, url: str, param: str) -> bytes:
        """Return what a URL holds; nothing, for now, of one that was not fetched yet."""
        if url not in self.fetched:
            self.wanted[url] = param
        return self.fetched.get(url, b"")


_OF_REQUEST: ContextVar[RemoteUrls | None] = ContextVar("the remote images of the request that is read", default=None)


@contextmanager
def remote_urls(urls: RemoteUrls | None) -> Iterator[None]:
    """Have `remote_data` find a request's remote images while the block lasts; None: nothing is fetched here."""
    token = _OF_REQUEST.set(urls)
    try:
        yield
    finally:
        _OF_REQUEST.reset(token)


def fetched_images() -> Mapping[str, bytes]:
    """Return what the URLs hold of the request that is read, as far as it is here; it fills while they are fetched."""
    urls = _OF_REQUEST.get()
    return {} if urls is None else urls.fetched


def is_remote(url: str) -> bool:
    """Return whether a URL leads to another server."""
    return url.lstrip()[:6].lower().startswith(("http:", "https:"))


def remote_data(url: str, param: str) -> bytes:
    """Return the encoded image of a URL, or nothing where it is to be fetched before the body is read again.

    Raises:
        ImageError: Nothing is fetched here.
    """
    urls = _OF_REQUEST.get()
    if urls is None:
        raise ImageError(
            f"{shown(url)}: this server fetches no remote images. Send the bytes: data:image/png;base64,...", param
        )
    return urls.data_of(url, param)
