"""Who may ask a server for what: settings of keys, of pages of other origins, and of what may be fetched."""

from __future__ import annotations

import ipaddress
import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from serving.access.hosts import AllowedHost
from serving.access.keys import ApiKey

_ORIGIN = re.compile(r"https?://[A-Za-z0-9._\[\]:-]+")
ANY_ORIGIN = "*"


def _listed(value: Any) -> Any:
    """Return the parts of a text between commas: variables hold no lists."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class AccessSettings(BaseModel):
    """Who is let in.

    Attributes:
        keys_file: Keys as `pocketvlm keys` keeps them, read again when they change. With it, or with `keys`, every
            request needs one, health, the page and the documents aside.
        keys: The same, given here. `POCKETVLM_API_KEYS` and `POCKETVLM_ADMIN_KEYS` are hashed into it.
        open_metrics: `/metrics` needs no key either.
        cors_origins: Origins whose pages may ask, such as https://app.example.com; `*` for any.
        models_dir: Where bundles lie that may be loaded while the server runs, by an administrator's key. None: there
            are no such routes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys_file: Path | None = None
    keys: tuple[ApiKey, ...] = Field(default=(), repr=False)
    open_metrics: bool = False
    cors_origins: Names = ()
    models_dir: Path | None = None

    @property
    def needs_key(self) -> bool:
        """Whether requests need a key; a file without any lets nobody in."""
        return self.keys_file is not None or bool(self.keys)

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin; write scheme, host and port alone: https://app.example.com")
        return origins

    @model_validator(mode="after")
    def _check_keys(self) -> AccessSettings:
        if self.models_dir is not None and not self.needs_key:
            raise ValueError(
                "models_dir lets administrators load models, and nobody is asked for a key: set keys_file (pocketvlm "
                "keys add NAME --admin), or POCKETVLM_ADMIN_KEYS"
            )
        return self

    @field_validator("models_dir")
    @classmethod
    def _check_folder(cls, folder: Path | None) -> Path | None:
        if folder is not None and not folder.is_dir():
            raise ValueError(f"models_dir {folder} is no folder; name the one that holds the bundles")
        return folder


class RemoteSettings(BaseModel):
    """What is fetched for requests: images, and none by default.

    Attributes:
        hosts: That images may come from: `images.example.com` for HTTPS, `*.example.com` for all names below it,
            `http://10.0.0.5:8080` with scheme and port.
        private_networks: Addresses that are not public, and yet may be connected to, such as 10.1.0.0/16.
        timeout_s: For one image, from its name to its last byte.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hosts: Names = ()
    private_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_listed)] = ()
    timeout_s: float = Field(default=10.0, gt=0, le=600)

    @field_validator("hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            AllowedHost.read(host)
        return hosts


class RecordingSettings(BaseModel):
    """Requests that are written down for debugging; none by default.

    Attributes:
        folder: Where. It gets their texts: it is for servers whose users were told.
        max_bytes: Of all files together; the oldest go.
        images: Write images and videos as they came; else their digests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path | None = None
    max_bytes: int = Field(default=64 << 20, ge=64 << 10)
    images: bool = False


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
