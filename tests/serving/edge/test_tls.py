"""Encrypted connections: what is found wrong before a server listens, and the same limits behind a handshake."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from bundle.errors import SettingsError
from serving.fake import FakeClient
from serving.settings import ApiSettings, HttpSettings, ServerSettings
from serving.settings_sources import load_settings
from serving.tls import Certificate

DAY = timedelta(days=1)
JSON = {"content-type": "application/json"}
HALF = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
CHAT = {"model": "fake-vlm", "messages": [{"role": "user", "content": "one two"}]}


def trusting(http: HttpSettings) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(http.tls_certificate))


@pytest.fixture
def url_of_encrypted(serve_edge: Callable[..., Any], engine: FakeClient, tmp_path: Path) -> Callable[..., Any]:
    def serve(http: HttpSettings, **settings: Any) -> str:
        return serve_edge(engine, ServerSettings(http=http, **settings)).replace("http://", "https://")

    return serve


@pytest.fixture
def engine() -> FakeClient:
    return FakeClient()


def test_a_client_that_trusts_the_certificate_is_answered_whole_and_streamed(
    url_of_encrypted: Callable[..., str], tmp_path: Path, write_pair: Callable[..., HttpSettings]
) -> None:
    http = write_pair(tmp_path)
    url = url_of_encrypted(http)
    with httpx.Client(verify=trusting(http), base_url=url) as client:
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.json()["choices"][0]["message"]["content"] == "0 images. one two"
        assert client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text.endswith("data: [DONE]\n\n")
        large = client.post("/v1/chat/completions", content=b" " * (40 << 20), headers=JSON)
        assert large.status_code == 413
    with pytest.raises(httpx.ConnectError, match="self-signed"):
        httpx.get(url + "/health/live")
    with pytest.raises(httpx.HTTPError):
        httpx.get(url.replace("https", "http") + "/health/live", timeout=5)
    assert httpx.get(url + "/health/live", verify=trusting(http)).status_code == 200


def test_old_versions_of_tls_are_refused(
    url_of_encrypted: Callable[..., str], tmp_path: Path, write_pair: Callable[..., HttpSettings]
) -> None:
    http = write_pair(tmp_path)
    context = trusting(http)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError):
        httpx.get(url_of_encrypted(http) + "/health/live", verify=context)


def test_a_handshake_that_takes_too_long_is_given_up(
    url_of_encrypted: Callable[..., str], tmp_path: Path, write_pair: Callable[..., HttpSettings]
) -> None:
    http = write_pair(tmp_path).model_copy(update={"head_timeout_s": 0.3})
    host, port = url_of_encrypted(http).removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as silent:
        started_s = time.monotonic()
        assert silent.recv(1) == b""
        assert time.monotonic() - started_s < 15


def test_limits_hold_behind_the_handshake(
    url_of_encrypted: Callable[..., str],
    tmp_path: Path,
    write_pair: Callable[..., HttpSettings],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A head that is too large, and a refusal while a body is on its way: the answer is read, the connection closed."""
    http = write_pair(tmp_path).model_copy(update={"max_head_bytes": 2048})
    host, port = url_of_encrypted(http, api=ApiSettings(body_timeout_s=0.3)).removeprefix("https://").split(":")
    for request, status in (
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 4096, b"431"),
        (HALF, b"408"),
    ):
        with (
            socket.create_connection((host, int(port)), timeout=20) as plain,
            trusting(http).wrap_socket(plain, server_hostname="127.0.0.1") as client,
        ):
            client.sendall(request)
            answer = b""
            while piece := client.recv(4096):
                answer += piece
            assert answer.startswith(b"HTTP/1.1 " + status)
    assert "Fatal error" not in caplog.text  # the connection was closed in order, not for a fault of ours


def test_a_renewed_certificate_is_shown_to_those_who_come_after(
    tmp_path: Path, write_pair: Callable[..., HttpSettings]
) -> None:
    http = write_pair(tmp_path)
    certificate = Certificate.of(http)
    assert certificate is not None
    before = shown(certificate)
    write_pair(tmp_path)
    certificate.refresh()
    assert shown(certificate) != before


def test_a_pair_that_is_half_renewed_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, write_pair: Callable[..., HttpSettings]
) -> None:
    http, other = write_pair(tmp_path), write_pair(tmp_path, "other")
    certificate = Certificate.of(http)
    assert certificate is not None
    assert http.tls_certificate is not None
    assert other.tls_certificate is not None
    before = shown(certificate)
    http.tls_certificate.write_bytes(other.tls_certificate.read_bytes())
    certificate.refresh()
    certificate.refresh()
    assert shown(certificate) == before
    assert caplog.text.count("the certificate is as it was") == 1


def shown(certificate: Certificate) -> bytes:
    """Return the certificate that a client is shown now."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server),
        certificate.context.wrap_bio(to_server, to_client, server_side=True),
    ]
    for turn in range(8):
        try:
            sides[turn % 2].do_handshake()
        except ssl.SSLWantReadError:
            continue
    found = sides[0].getpeercert(binary_form=True)
    assert found
    return found


def test_what_is_wrong_with_the_files_is_told_before_anything_listens(
    tmp_path: Path, write_pair: Callable[..., HttpSettings]
) -> None:
    good, other = write_pair(tmp_path), write_pair(tmp_path, "other")
    locked = write_pair(tmp_path, "locked", passphrase=b"secret")
    (tmp_path / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    certificate, key = good.tls_certificate, good.tls_key
    for pair, named in (
        ((certificate, other.tls_key), "is not the key of"),
        ((key, key), r"server\.key holds no certificate in PEM form"),
        ((certificate, certificate), r"server\.pem holds no private key in PEM form"),
        ((locked.tls_certificate, locked.tls_key), "wants a passphrase"),
        ((tmp_path / "none", key), "none cannot be read: No such file"),
        ((certificate, tmp_path), "cannot be read: Is a directory"),
        ((tmp_path / "broken.pem", key), "cannot be used"),
    ):
        with pytest.raises(SettingsError, match=named):
            Certificate.of(HttpSettings(tls_certificate=pair[0], tls_key=pair[1]))
    with pytest.raises(SettingsError, match="tls_certificate and tls_key belong together"):
        load_settings(None, {}, {"http.tls_key": key})


def test_a_certificate_that_has_expired_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, write_pair: Callable[..., HttpSettings]
) -> None:
    Certificate.of(write_pair(tmp_path))
    assert not caplog.records
    Certificate.of(write_pair(tmp_path, ends=-DAY))
    assert "is not taken by clients: certificate has expired" in caplog.text
