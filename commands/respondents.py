"""A model that a subcommand asks, from what the command line names: a bundle's directory or an endpoint's URL."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from serving.respondents.endpoint import EndpointRespondent
    from serving.respondents.in_process import BundleRespondent, Cheaper

_URL_STARTS = ("http://", "https://")

KeyOption = Annotated[str, typer.Option("--key-env", help="The environment variable that holds an endpoint's key.")]
NameOption = Annotated[
    str | None, typer.Option("--name", help="The model's name at an endpoint. Default: the only one there.")
]


@dataclass(frozen=True)
class Endpoint:
    """What is said of an endpoint; of a bundle, nothing.

    Attributes:
        name: The model's there; None: the only one.
        key_env: The environment variable that holds the key.
        embeds: Whether the model makes vectors; None: as the endpoint says.
    """

    name: str | None
    key_env: str
    embeds: bool | None = None


def is_url(target: str) -> bool:
    """Say whether a target is an endpoint."""
    return target.startswith(_URL_STARTS)


def respondent_of(
    target: str,
    endpoint: Endpoint,
    threads: int,
    at_once: int = 1,
    cheaper: Cheaper | None = None,
    adapter: str = "",
) -> EndpointRespondent | BundleRespondent:
    """Return the model of a target, not yet loaded or reached.

    Args:
        target: A directory or a URL.
        endpoint: What is said of the latter.
        threads: Inside one operator, in this process.
        at_once: Questions at a time, in this process.
        cheaper: What is left out of prompts, in this process.
        adapter: Of a bundle's, by name; empty: none.

    Raises:
        BadParameter: Something is said of an endpoint, and the target is a bundle, or the reverse.
        ModelNotFoundError: The bundle holds no such adapter.
        BundleFormatError: The folder is not a bundle.
        SettingsError: The URL is none.
    """
    if is_url(target):
        if adapter:
            raise typer.BadParameter(
                f"--adapter {adapter}: an endpoint lists adapters as models; write --name {adapter}"
            )
        from serving.respondents.endpoint import EndpointRespondent

        return EndpointRespondent(target, endpoint.name, os.environ.get(endpoint.key_env), embeds=endpoint.embeds)
    from serving.respondents.in_process import BundleRespondent

    if endpoint.name is not None or endpoint.embeds is not None:
        raise typer.BadParameter(
            f"{target} is a bundle, which says itself what it is; only an endpoint's model is named"
        )
    return BundleRespondent(Path(target), at_once, threads, cheaper, adapter)
