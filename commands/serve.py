"""`pocketvlm serve` and `pocketvlm deploy`: one application, in this process or on Ray Serve."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from commands.cache import kept_in
from commands.terminal import announce, progress

if TYPE_CHECKING:
    from serving.settings import ServerSettings

SERVE_HELP = "Serve bundles over HTTP from this one process (OpenAI-compatible; docs at /docs)."
DEPLOY_HELP = "Serve the same application as autoscaled Ray Serve deployments."

BundlesArgument = Annotated[
    list[Path] | None,
    typer.Argument(help="Bundle directories. None: the shipped reference models, exported on first use."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        help="A TOML file of settings (docs/architecture.md); variables POCKETVLM_... win over it, flags over both. "
        "Default: none."
    ),
]
HostOption = Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all. Default: 127.0.0.1.")]
PortOption = Annotated[int | None, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one. Default: 8000.")]
SequencesOption = Annotated[
    int | None, typer.Option(min=1, max=256, help="Sequences decoded together, per model. Default: 8.")
]
ContextOption = Annotated[
    int | None, typer.Option(min=2, help="Tokens per sequence. Default: the model's own, at most 4096.")
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--kv-memory",
        help="Memory of each model's cache of tokens, such as 512MiB: running answers and kept prompts. Default: half "
        "of what the sequences would take if all were full.",
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--kv-policy",
        help="Which rows of a prompt stay in the cache once it was read, where a request does not say: snapkv, look-m "
        "and others (docs/compression.md); given with --kv-budget. Default: all do.",
    ),
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--kv-budget",
        help="The share of a prompt's rows that stays, above 0 and at most 1; given with --kv-policy. Default: all.",
    ),
]
VisionMethodOption = Annotated[
    str | None,
    typer.Option(
        help="How images are reduced where a request does not say, with --vision-keep (docs/compression.md). "
        "Default: uniform."
    ),
]
VisionKeepOption = Annotated[
    float | None,
    typer.Option(help="Share of each image tile's tokens that is read then, above 0; 1 reduces nothing. Default: 1."),
]
PrefixesOption = Annotated[
    Path | None,
    typer.Option(
        help="Where beginnings of conversations are kept under a name, for POST /v1/prefixes (docs/compression.md). "
        "Default: there are none."
    ),
]
NamesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--served-name",
        help="A further name under which a model is served: ALIAS where one bundle is named, else MODEL=ALIAS. May be "
        "given several times. Default: none.",
    ),
]
ServeThreadsOption = Annotated[
    int | None, typer.Option(min=0, help="Threads per operator. Default: 0, one per physical core.")
]
ProviderOption = Annotated[
    Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx"] | None,
    typer.Option(
        help="Where models run: cuda takes variants of `quantize --target cuda` (docs/gpu.md); tensorrt and "
        "tensorrt-rtx, ONNX Runtime's providers of that name, those of `--target tensorrt`. Default: cpu.",
        show_default=False,
    ),
]
KeysFileOption = Annotated[
    Path | None,
    typer.Option(
        help="A file of API keys (`pocketvlm keys`), read again when it changes; every request then needs one. Keys in "
        "POCKETVLM_API_KEYS and POCKETVLM_ADMIN_KEYS, commas between them, do the same. Default: nobody is asked."
    ),
]
OriginsOption = Annotated[
    list[str] | None,
    typer.Option(
        help="An origin whose pages may ask from a browser, such as https://app.example.com; * for any. May be given "
        "several times. Default: none."
    ),
]
ModelsOption = Annotated[
    Path | None,
    typer.Option(
        "--models-dir",
        help="A folder of bundles that an administrator's key may load while the server runs (POST /v1/models/load); "
        "serve alone. Default: none.",
    ),
]
RecordOption = Annotated[
    Path | None,
    typer.Option(
        "--record",
        help="A folder in which requests are written down for debugging, texts included, keys never, images as digests "
        "(docs/api.md). Default: none are.",
    ),
]
ImageHostsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--image-host",
        help="A host that images named by URL are fetched from: images.example.com for HTTPS, *.example.com for all "
        "names below it, http://10.0.0.5:8080 with scheme and port. May be given several times. Default: nothing is "
        "fetched.",
    ),
]
CertificateOption = Annotated[
    Path | None,
    typer.Option("--tls-certificate", help="A certificate, PEM, its chain behind it: speak HTTPS. Default: HTTP."),
]
CertificateKeyOption = Annotated[
    Path | None,
    typer.Option("--tls-key", help="The certificate's key, PEM, without a passphrase. Default: none."),
]
LogLevelOption = Annotated[
    Literal["debug", "info", "warning", "error"] | None,
    typer.Option(help="Least severe line that is logged, on stderr. Default: info.", show_default=False),
]
LogFormatOption = Annotated[
    Literal["text", "json"] | None,
    typer.Option(help="How lines are logged; json: one object a line. Default: text.", show_default=False),
]
TracesOption = Annotated[
    str | None,
    typer.Option(
        help="Send a trace of every request to this URL, which takes OTLP over HTTP, such as "
        "http://collector:4318/v1/traces (extra `tracing`). Default: none are made.",
        show_default=False,
    ),
]
DrainOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Seconds that running requests may go on after SIGTERM or Ctrl-C. Default: 30.",
        show_default=False,
    ),
]
UngatedOption = Annotated[
    bool | None,
    typer.Option("--allow-ungated", help="Serve a variant whose quality gate failed or was never measured."),
]
RealOption = Annotated[
    bool,
    typer.Option(
        "--real",
        help="Serve the real model, beside the bundles that are named: SmolLM2-135M's decoder, fetched (93 MB) once.",
    ),
]


def serve(
    context: typer.Context,
    bundles: BundlesArgument = None,
    host: HostOption = None,
    port: PortOption = None,
    max_sequences: SequencesOption = None,
    context_tokens: ContextOption = None,
    kv_memory: MemoryOption = None,
    kv_policy: PolicyOption = None,
    kv_budget: BudgetOption = None,
    vision_method: VisionMethodOption = None,
    vision_keep: VisionKeepOption = None,
    prefix_folder: PrefixesOption = None,
    served_name: NamesOption = None,
    threads: ServeThreadsOption = None,
    provider: ProviderOption = None,
    keys_file: KeysFileOption = None,
    cors_origin: OriginsOption = None,
    models_dir: ModelsOption = None,
    image_host: ImageHostsOption = None,
    record: RecordOption = None,
    tls_certificate: CertificateOption = None,
    tls_key: CertificateKeyOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
    otlp_traces_endpoint: TracesOption = None,
    drain_timeout_s: DrainOption = None,
    allow_ungated: UngatedOption = None,
    real: RealOption = False,
    config: ConfigOption = None,
) -> None:
    """Serve until a signal comes, on Ray where the command is `deploy`."""
    from serving.settings_sources import load_settings

    flags = {
        "host": host,
        "port": port,
        "log_level": log_level,
        "log_format": log_format,
        "tracing.endpoint": otlp_traces_endpoint,
        "drain_timeout_s": drain_timeout_s,
        "engine.max_sequences": max_sequences,
        "engine.context_tokens": context_tokens,
        "engine.kv_memory_bytes": kv_memory,
        "engine.kv_policy": kv_policy,
        "engine.kv_budget": kv_budget,
        "engine.vision_method": vision_method,
        "engine.vision_keep": vision_keep,
        "api.prefix_folder": prefix_folder,
        "api.access.keys_file": keys_file,
        "api.access.cors_origins": cors_origin or None,
        "api.access.models_dir": models_dir,
        "api.remote.hosts": image_host or None,
        "api.recording.folder": record,
        "http.tls_certificate": tls_certificate,
        "http.tls_key": tls_key,
        "engine.intra_threads": threads,
        **provider_flags(provider),
        "engine.allow_ungated": allow_ungated or None,
    }
    settings = load_settings(config, os.environ, flags)
    _refuse_files_early(settings)
    if context.info_name == "deploy":
        _refuse_models_dir(settings)
    _require("ray" if context.info_name == "deploy" else "uvicorn")
    if settings.tracing.endpoint is not None:
        _require("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    served = _served(bundles, real)
    names, adapters = _refuse_early(served, settings)
    settings = with_aliases(settings, names, served_name or [], adapters)
    if context.info_name == "deploy":
        from serving.cluster.deploy import deploy

        deploy(served, settings, announce)
    else:
        from serving.edge.serve import serve as serve_here

        serve_here(served, settings, announce)


def _refuse_models_dir(settings: ServerSettings) -> None:
    """Refuse under Ray what it does in its own way.

    Raises:
        SettingsError: Models are to be loaded while the application runs.
    """
    from bundle.errors import SettingsError

    if settings.api.access.models_dir is not None:
        raise SettingsError(
            f"models_dir {settings.api.access.models_dir}: under Ray, models come and go by deploying again; leave it "
            "out"
        )


def _refuse_files_early(settings: ServerSettings) -> None:
    """Refuse before anything is loaded a file of keys, or a certificate, that is unusable.

    Raises:
        SettingsError: It is.
    """
    from serving.tls import Certificate

    Certificate.of(settings.http)
    if settings.api.access.needs_key:
        from serving.access.keyring import Keyring

        Keyring(settings.api.access)


def provider_flags(provider: str | None) -> dict[str, str | None]:
    """Return the settings that --provider stands for: TensorRT's providers run on CUDA's device."""
    if provider in ("tensorrt", "tensorrt-rtx"):
        return {"engine.provider": "cuda", "engine.device_runtime": provider}
    return {"engine.provider": provider}


def _require(module: str) -> None:
    """Refuse before models are exported where a package is missing.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    if find_spec(module) is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def _refuse_early(bundles: list[Path], settings: ServerSettings) -> tuple[list[str], list[str]]:
    """Refuse before a port is opened what can be seen without reading weights: paths, manifests, gates.

    Returns:
        The models' names, and those of their adapters, behind their models' and, where nothing else has one, alone.

    Raises:
        BundleError: One is no bundle, lacks a file, or failed its gate or has none.
    """
    from bundle.directory import open_bundle

    allow_ungated = settings.engine.allow_ungated
    opened = [open_bundle(bundle, verify=False, allow_ungated=allow_ungated).manifest for bundle in bundles]
    held = [(each.name, name) for each in opened if each.decoder for name in each.decoder.adapter_names]
    names, behind = [each.name for each in opened], [f"{model}:{name}" for model, name in held]
    counted = Counter([*names, *(name for _, name in held)])
    return names, [*(name for _, name in held if counted[name] == 1), *behind]


def with_aliases(
    settings: ServerSettings, names: list[str], given: list[str], adapters: Sequence[str] = ()
) -> ServerSettings:
    """Return the settings with the aliases that flags give to models.

    Args:
        settings: May have some themselves.
        names: Of the models.
        given: `ALIAS` or `MODEL=ALIAS`.
        adapters: Names of their adapters, which are served as models.

    Raises:
        SettingsError: An alias is a model's own name or is there twice, or its model is not served.
    """
    from bundle.errors import SettingsError

    aliases = dict(settings.api.aliases)
    for each in given:
        name, _, alias = each.rpartition("=")
        if not name and len(names) > 1:
            raise SettingsError(f"--served-name {each}: several models are served; write MODEL={each}")
        if alias in aliases:
            raise SettingsError(f"--served-name {each}: {alias} stands for {aliases[alias]} already")
        aliases[alias] = name or names[0]
    for alias, name in aliases.items():
        if name not in {*names, *adapters} or not alias:
            raise SettingsError(f"the alias {alias!r} stands for {name!r}; served: {', '.join((*names, *adapters))}")
        if alias in {*names, *adapters}:
            raise SettingsError(f"the alias {alias!r} is a served model's own name; choose another")
    return settings.model_copy(update={"api": settings.api.model_copy(update={"aliases": aliases})})


def _served(bundles: list[Path] | None, real: bool) -> list[Path]:
    """Return the bundles that were named, and the real model if it is asked for; the shipped ones without either."""
    from bundle.machine import cache_folder

    if real:
        from commands.real import real_bundle

        with kept_in(cache_folder() / "real") as folder:
            return [*(bundles or ()), real_bundle(folder, progress)]
    if bundles:
        return bundles
    from commands.shipped import WHAT_TO_ASK, shipped_bundles

    with kept_in(cache_folder()) as folder:
        shipped = shipped_bundles(folder, progress)
    progress(WHAT_TO_ASK)
    return shipped
