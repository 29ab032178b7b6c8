"""ONNX Runtime's own TensorRT providers: what a session of a bundle's graph is opened with.

TensorRT's is built into ONNX Runtime's GPU build (`TensorrtExecutionProvider`); TensorRT-RTX's is a package of its own
(`onnxruntime-ep-nv-tensorrt-rtx`), registered as a plug-in. Either builds an engine when a session is opened, and keeps
it as a graph of one EPContext node, which later sessions open instead. None of this ever ran on a device here
(docs/tensorrt.md): options are ONNX Runtime 1.31's and TensorRT-RTX-EP-ABI 0.5's, by their sources.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from bundle.directory import Bundle
from bundle.engines import graph_digest
from bundle.errors import MachineError
from bundle.extras import install_line
from bundle.machine import cache_folder
from bundle.manifest import ComponentName
from bundle.states import ROWS
from runtime.onnx_runtime import onnx_runtime
from runtime.providers import CUDA
from runtime.settings import RuntimeSettings
from runtime.tensorrt.card import card_here
from runtime.tensorrt.image_sizes import try_image_sizes
from runtime.tensorrt.precision import is_half
from runtime.tensorrt.profiles import Profile, profiles_of
from runtime.tensorrt.provider_graphs import check_provider_graph
from runtime.tensorrt.recorded import with_recorded_sizes

logger = logging.getLogger(__name__)

TENSORRT, TENSORRT_RTX = "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"
_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
_FORM = 2
"""Counts changes of what is asked of a provider; engines of another are not opened."""
Flavour = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class ProviderPlan:
    """How a session is opened on one of TensorRT's providers.

    Attributes:
        provider: ONNX Runtime's name of it.
        options: Its own, all texts.
        entries: Of the session's configuration.
        fixed_sizes: Free sizes that the graph is opened with as numbers; TensorRT's cache update wants S fixed.
        context: The graph of an EPContext node that holds the engine; written by the first session.
    """

    provider: str
    options: Mapping[str, str]
    entries: Mapping[str, str]
    fixed_sizes: Mapping[str, int]
    context: Path
    is_plugin: bool = field(default=False)

    def source(self, graph: Path) -> Path:
        """Return what a session opens: the engine that an earlier one left, or the graph."""
        return self.context if self.context.is_file() else graph

    def apply(self, runtime: ModuleType, options: Any) -> list[tuple[str, dict[str, str]]]:
        """Set a session's options, and return its providers; none where a plug-in is named by its devices.

        Raises:
            MachineError: This machine lacks the provider.
        """
        for name, value in self.entries.items():
            options.add_session_config_entry(name, value)
        for name, size in self.fixed_sizes.items():
            options.add_free_dimension_override_by_name(name, size)
        self.context.parent.mkdir(parents=True, exist_ok=True)
        if not self.is_plugin:
            return [(self.provider, dict(self.options))]
        options.add_provider_for_devices(_plugin_devices(runtime), dict(self.options))
        return []


def plan_of(bundle: Bundle, name: ComponentName, settings: RuntimeSettings) -> ProviderPlan | None:
    """Return how a graph's session is opened; None where sessions run on a CPU, or on CUDA's own provider.

    Raises:
        SettingsError: The graph has sizes that profiles know nothing of.
        BundleFormatError: The graph is of an older version, and TensorRT would compute something else.
        MachineError: This machine lacks the provider, or the graph holds what the provider does not take.
    """
    if settings.provider == "cpu" or settings.device_runtime == "cuda":
        return None
    runtime = onnx_runtime()
    is_built_in = _require_provider(runtime, settings.device_runtime)
    manifest = bundle.manifest
    component = manifest.components[name]
    limits = replace(settings.limits(manifest), image_sizes_px=try_image_sizes(bundle))
    limits = with_recorded_sizes(bundle, component, limits)
    if component.role == "decoder" and not is_built_in and CUDA not in runtime.get_available_providers():
        raise MachineError(
            f"{name}: a decoder's cache lies in CUDA's memory, which this ONNX Runtime {runtime.__version__} cannot "
            f"allocate beside the plug-in of {TENSORRT_RTX}; encoders run so. Take engines of pocketvlm compile, or an "
            "ONNX Runtime that was built with both."
        )
    check_provider_graph(bundle, name)
    profile = profiles_of(manifest, component, limits)[0]  # the first holds the others' sizes
    provider = TENSORRT if settings.device_runtime == "tensorrt" else TENSORRT_RTX
    versions = runtime.__version__, _tensorrt_version() if provider == TENSORRT else _plugin_version()
    key = _key(graph_digest(bundle, name), provider, versions, profile)
    context = cache_folder() / "providers" / key / f"{name}_ctx.onnx"
    made = _tensorrt_options if settings.device_runtime == "tensorrt" else _rtx_options
    fixed = {ROWS: limits.cache_rows} if any(state.kind == "rows" for state in manifest.states_of(component)) else {}
    return ProviderPlan(
        provider=provider,
        options={**made(context, is_half(manifest, name)), **_shapes(settings.device_runtime, profile)},
        entries={} if context.is_file() or provider == TENSORRT else _context_entries(context),
        fixed_sizes=fixed,
        context=context,
        is_plugin=not is_built_in,
    )


def _require_provider(runtime: ModuleType, flavour: Flavour | Literal["cuda"]) -> bool:
    """Check that this machine has a provider; return whether ONNX Runtime was built with it.

    Raises:
        MachineError: It has not.
    """
    built_in = runtime.get_available_providers()
    if flavour == "tensorrt":
        if TENSORRT in built_in:
            return True
        raise MachineError(
            f"this ONNX Runtime {runtime.__version__} has no {TENSORRT}, only {', '.join(built_in)}. On x86-64 replace "
            f"it with: pip uninstall onnxruntime, then {install_line('gpu')}, and TensorRT beside it; on a Jetson with "
            "NVIDIA's build for its JetPack. Or choose device_runtime cuda, or engines of pocketvlm compile."
        )
    if TENSORRT_RTX in built_in:
        return True
    if _plugin() is None:
        raise MachineError(
            f"{TENSORRT_RTX} is neither in this ONNX Runtime {runtime.__version__} nor beside it. Install it with: pip "
            "install onnxruntime-ep-nv-tensorrt-rtx (cards of 8.6, 8.9, 12.0 and newer), or choose device_runtime cuda."
        )
    return False


def _plugin() -> Any:
    """Return the package that brings TensorRT-RTX's provider; None where it is not installed."""
    try:
        return __import__(_PLUGIN)
    except ImportError:
        return None


def _plugin_devices(runtime: ModuleType) -> list[Any]:
    """Return the devices that TensorRT-RTX's provider sees, once it is registered.

    Raises:
        MachineError: It cannot be loaded, or sees none.
    """
    package = _plugin()
    name = package.get_ep_name()
    if name not in {device.ep_name for device in runtime.get_ep_devices()}:
        try:
            runtime.register_execution_provider_library(name, package.get_library_path())
        except Exception as error:  # ONNX Runtime's errors share no class
            raise MachineError(
                f"{TENSORRT_RTX} cannot be loaded: {error}. It wants a driver and the CUDA runtime of its package"
            ) from error
    devices = [device for device in runtime.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise MachineError(
            f"{TENSORRT_RTX} sees no card of compute capability 8.6, 8.9, 12.0 or newer; choose device_runtime cuda"
        )
    return devices[:1]


def _tensorrt_options(context: Path, is_half: bool) -> dict[str, str]:
    """Return options of TensorRT's provider, where EPContext is its own too: Python hands it no session's.

    Where it writes one, it puts its engine beside: a path of ours would be written into the graph, and one that is
    absolute is refused when the graph is opened.
    """
    options = {
        "device_id": "0",
        "trt_fp16_enable": "1" if is_half else "0",  # single precision is what was exported
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(context.parent.parent),  # of all graphs: kernels were timed for the card
    }
    if context.is_file():
        return options
    return {
        **options,
        "trt_engine_cache_enable": "1",
        "trt_dump_ep_context_model": "1",
        "trt_ep_context_file_path": str(context),
        "trt_ep_context_embed_mode": "0",
    }


def _rtx_options(context: Path, is_half: bool) -> dict[str, str]:
    """Return options of TensorRT-RTX's provider, which takes precisions from the graph, and EPContext of a session."""
    return {"device_id": "0", "nv_runtime_cache_path": str(context.parent)}


def _context_entries(context: Path) -> dict[str, str]:
    """Return what lets a session leave its engine as a graph of one EPContext node, the engine in a file beside it."""
    return {"ep.context_enable": "1", "ep.context_file_path": str(context), "ep.context_embed_mode": "0"}


def _shapes(flavour: Flavour, profile: Profile) -> dict[str, str]:
    """Return least, usual and largest shapes of every input, as providers read them: "ids:1x1,mask:1x1"."""
    prefix = "trt" if flavour == "tensorrt" else "nv"
    return {
        f"{prefix}_profile_{word}_shapes": ",".join(
            f"{name}:{'x'.join(map(str, sizes[at]))}" for name, sizes in profile.items() if sizes[at]
        )
        for at, word in enumerate(("min", "opt", "max"))
    }


def _key(digest: str, provider: str, versions: Sequence[str], profile: Profile) -> str:
    """Return the name of the folder of an engine: another graph, provider, version, driver, card or profile."""
    card = card_here()
    sizes = {name: list(map(list, each)) for name, each in profile.items()}
    told = json.dumps([_FORM, digest, provider, *versions, card.driver, str(card), sizes])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _tensorrt_version() -> str:
    """Return the version of TensorRT that ONNX Runtime loads, as its package or its library says; "unknown"."""
    for package in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    for name in ("libnvinfer.so.11", "libnvinfer.so.10"):
        with suppress(OSError, AttributeError):
            return str(ctypes.CDLL(name).getInferLibVersion())
    return "unknown"


def _plugin_version() -> str:
    """Return the version of the package that brings TensorRT-RTX's provider; "none" without."""
    packages = metadata.packages_distributions().get(_PLUGIN, ())
    return ", ".join(sorted(metadata.version(package) for package in set(packages))) or "none"
