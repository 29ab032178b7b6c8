"""A certificate and its key: found to be usable before a server listens, and read again when they are renewed."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path
from typing import NoReturn

from bundle.errors import SettingsError
from serving.settings import HttpSettings

logger = logging.getLogger(__name__)

_BEGIN_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
_END_CERTIFICATE = "-----END CERTIFICATE-----"
_PRIVATE_KEY = "PRIVATE KEY-----"
_MOST_MESSAGES = 8
"""Of a handshake with oneself, which takes two from each side."""


class Certificate:
    """What a server shows who it is by.

    Args:
        certificate: PEM, its chain behind it.
        key: PEM, without a passphrase.

    Attributes:
        context: For connections; a renewed certificate goes into it, for those that come after.

    Raises:
        SettingsError: A file cannot be read or is no such thing, or they do not go together.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._version = self._version_now()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._load(self.context)
        if fault := _fault_of(self.context, _text_of(certificate)):
            logger.warning("the certificate %s is not taken by clients: %s", certificate, fault)

    @classmethod
    def of(cls, settings: HttpSettings) -> Certificate | None:
        """Return the certificate of a server; None where it speaks without one.

        Raises:
            SettingsError: It is unusable.
        """
        if settings.tls_certificate is None or settings.tls_key is None:
            return None
        return cls(settings.tls_certificate, settings.tls_key)

    def refresh(self) -> None:
        """Read the files again where they changed; unusable ones change nothing, and the log tells."""
        version = self._version_now()
        if version == self._version:
            return
        self._version = version
        try:
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # a pair that does not match would spoil the other
            self._load(self.context)
        except SettingsError as error:
            logger.error("the certificate is as it was: %s", error)
            return
        logger.info("%s was read again", self._certificate)

    def _version_now(self) -> tuple[int, ...]:
        try:
            found = [os.stat(file) for file in (self._certificate, self._key)]
        except OSError:
            return ()
        return tuple(number for each in found for number in (each.st_mtime_ns, each.st_ino))

    def _load(self, context: ssl.SSLContext) -> None:
        certificate, key = self._certificate, self._key
        if _BEGIN_CERTIFICATE not in _text_of(certificate):
            raise SettingsError(f"{certificate} holds no certificate in PEM form (BEGIN CERTIFICATE)")
        if _PRIVATE_KEY not in _text_of(key):
            raise SettingsError(f"{key} holds no private key in PEM form (BEGIN PRIVATE KEY)")

        def refuse() -> NoReturn:
            raise SettingsError(f"{key} wants a passphrase; write it without one: openssl pkey -in {key}")

        try:
            context.load_cert_chain(certificate, key, password=refuse)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise SettingsError(
                    f"{key} is not the key of {certificate}; name the pair that belongs together"
                ) from error
            raise SettingsError(f"{certificate} and {key} cannot be used: {error.reason or error}") from error


def _text_of(file: Path) -> str:
    try:
        return file.read_text("ascii", "replace")
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from error


def _fault_of(server: ssl.SSLContext, chain: str) -> str:
    """Return what a client that trusts just this certificate finds wrong with it, such as its age; else nothing."""
    own = chain[chain.index(_BEGIN_CERTIFICATE) : chain.index(_END_CERTIFICATE) + len(_END_CERTIFICATE)]
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(cadata=own)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        trusting.wrap_bio(to_client, to_server, server_side=False),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for turn in range(_MOST_MESSAGES):
        try:
            sides[turn % 2].do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        except ssl.SSLError:
            return ""
    return ""
