"""ONNX Runtime sessions: the one module of `serving` that imports it.

A `Session` runs a graph from arrays to arrays. A `BoundDecoder` also owns the key/value cache and binds past and
present of a range of slots to the same memory, so that a step writes its new rows in place and copies nothing.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bundle.errors import BundleFileError, MachineError, SignatureError
from bundle.extras import install_line
from bundle.machine import num_granted_cores
from bundle.manifest import Component, ComponentName, DecoderDims, Manifest, TensorSpec
from runtime.cache_shape import CacheShape
from runtime.settings import EngineSettings

if TYPE_CHECKING:
    from types import ModuleType

Array = npt.NDArray[Any]

_DTYPE_OF_ORT_TYPE = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
_CPU = "CPUExecutionProvider"
_PROVIDERS = {"cpu": [_CPU], "cuda": ["CUDAExecutionProvider", _CPU]}
_FATAL_ONLY = 4  # ONNX Runtime's log severity for probes, whose failures are findings
_ERRORS_ONLY = (
    3  # ONNX Runtime's log severity: what goes wrong is raised, warnings about graph shapes are not for users
)


def _runtime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise MachineError(
            f"running a bundle needs ONNX Runtime. Install it with: {install_line('cpu')} (or [gpu])"
        ) from error
    return onnxruntime  # type: ignore[no-any-return]


def _session_options(runtime: ModuleType, settings: EngineSettings) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = settings.intra_threads or num_granted_cores() or 0  # 0: one per physical core
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.allow_spinning else "0")
    return options


def _open(path: Path, settings: EngineSettings) -> Any:
    runtime = _runtime()
    providers = _PROVIDERS[settings.provider]
    if providers[0] not in runtime.get_available_providers():
        raise MachineError(
            f"this ONNX Runtime {runtime.__version__} has no {providers[0]}, only "
            f"{', '.join(runtime.get_available_providers())}. Replace it with: pip uninstall onnxruntime, then "
            f"{install_line('gpu')}; or choose provider cpu."
        )
    unsupported = runtime.capi.onnxruntime_pybind11_state.NotImplemented
    try:
        return runtime.InferenceSession(str(path), _session_options(runtime, settings), providers=providers)
    except unsupported as error:
        raise MachineError(f"{path}: ONNX Runtime {runtime.__version__} lacks an operator of it: {error}") from error
    except Exception as error:
        raise BundleFileError(f"{path}: ONNX Runtime {runtime.__version__} cannot open it: {error}") from error


class Session:
    """One graph of a bundle, opened and found to be what the manifest says.

    Args:
        directory: The bundle.
        component: The graph's entry in the manifest.
        settings: Provider and threads. Weights beside the graph are memory-mapped by the runtime.

    Raises:
        MachineError: ONNX Runtime, its provider or an operator is missing.
        BundleFileError: The file is not a graph.
        SignatureError: Inputs or outputs differ from the manifest's.
    """

    def __init__(self, directory: Path, component: Component, settings: EngineSettings) -> None:
        self.path = directory / component.file
        self.component = component
        self.device = settings.provider
        self._session = _open(self.path, settings)
        _check_signature(self.path, "input", component.inputs, self._session.get_inputs())
        _check_signature(self.path, "output", component.outputs, self._session.get_outputs())
        self.output_names = [spec.name for spec in component.outputs]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name; the arrays are new."""
        return dict(zip(self.output_names, self._session.run(self.output_names, dict(feeds)), strict=True))

    def binding(self) -> Any:
        """Return a fresh ONNX Runtime binding of this session."""
        return self._session.io_binding()

    def run_bound(self, binding: Any) -> None:
        """Run with inputs and outputs bound beforehand."""
        self._session.run_with_iobinding(binding)


def open_decoders(directory: Path, manifest: Manifest, settings: EngineSettings) -> dict[str, Session]:
    """Return the decoder's graphs by component name: "decoder", and "decoder_prefill" where the bundle has one."""
    names: tuple[ComponentName, ...] = ("decoder", "decoder_prefill")
    return {
        name: Session(directory, manifest.components[name], settings) for name in names if name in manifest.components
    }


def _check_signature(path: Path, side: str, expected: Sequence[TensorSpec], found: Sequence[Any]) -> None:
    found_by_name = {value.name: value for value in found}
    if set(found_by_name) != {spec.name for spec in expected}:
        raise SignatureError(
            f"{path}: {side}s are {sorted(found_by_name)}, the manifest says {sorted(spec.name for spec in expected)}. "
            "Export the checkpoint again."
        )
    for spec in expected:
        value = found_by_name[spec.name]
        dtype = _DTYPE_OF_ORT_TYPE.get(value.type, value.type)
        if dtype != spec.dtype or not _is_same_shape(spec.shape, value.shape):
            raise SignatureError(
                f"{path}: {side} {spec.name} is {dtype} {list(value.shape)}, "
                f"the manifest says {spec.dtype} {list(spec.shape)}. Export the checkpoint again."
            )


def _check_same_signature(first: Session, second: Session) -> None:
    if (first.component.inputs, first.component.outputs) != (second.component.inputs, second.component.outputs):
        raise SignatureError(
            f"{second.path} does not take and give what {first.path.name} does, so they cannot share a cache. "
            "Quantize the fp32 bundle again."
        )


def _is_same_shape(expected: Sequence[int | str], found: Sequence[int | str | None]) -> bool:
    """Sizes must agree; a free axis must be free in both, whatever its name."""
    if len(expected) != len(found):
        return False
    return all(
        wanted == actual if isinstance(wanted, int) else not isinstance(actual, int)
        for wanted, actual in zip(expected, found, strict=True)
    )


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return zeros whose 4 KiB pages become resident when they are written, and not before.

    numpy asks the kernel for huge pages: one token per slot would then make most of the cache resident.
    """
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages refuses the advice and does not need it
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)


class BoundDecoder:
    """A decoder and its cache: a step over slots `start ... start + B - 1` writes their new rows in place.

    The cache holds, per layer, keys and values of [slots, K, S, C]. Neighbouring slots are neighbours in memory, so
    a range of them is one tensor of the batch's shape, bound by its address.

    The graph is chosen by T alone. B would be as good a reason (eight rows are many, too), but then an answer would
    depend on who shares its batch.

    Args:
        session: Runs every step of one token per sequence, and prompts where there is no graph of their own.
        dims: The decoder's sizes.
        shape: Slots and their length.
        prompt_session: The same decoder in a scheme for many rows, where the bundle has one: runs steps of T > 1 over
            the same memory.

    Raises:
        MachineError: The cache is larger than what the machine can promise.
        SignatureError: The two graphs do not take and give the same tensors.
    """

    def __init__(
        self, session: Session, dims: DecoderDims, shape: CacheShape, prompt_session: Session | None = None
    ) -> None:
        runtime = _runtime()
        self._session = session
        self._prompt_session = prompt_session or session
        _check_same_signature(session, self._prompt_session)
        self._dims = dims
        self._dtype = np.dtype(dims.kv_dtype)
        self._slot_shape = (dims.num_kv_heads, shape.capacity_tokens, dims.head_size)
        whole = (shape.num_slots, *self._slot_shape)
        try:
            self._buffers = {
                f"{layer}.{side}": runtime.OrtValue.ortvalue_from_numpy(_zeros(whole, self._dtype), session.device, 0)
                for layer in range(dims.num_layers)
                for side in ("key", "value")
            }
        except (OSError, OverflowError) as error:
            raise MachineError(
                f"this machine has no room for the cache, {shape}: {error}. Lower max_sequences or context_tokens."
            ) from error
        self._bindings: dict[tuple[Session, int, int], Any] = {}

    def step(self, start: int, feeds: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        """Run the decoder over a range of slots.

        Args:
            start: The first slot; the batch size B of the feeds says how many.
            feeds: `inputs_embeds` [B, T, D], `position_ids` [B, T], `past_lengths` [B], `logits_indices` [B, N].

        Returns:
            [B, N, V] logits, valid until the next step.
        """
        num_sequences, num_tokens = feeds["position_ids"].shape
        session = self._session if num_tokens == 1 else self._prompt_session
        binding = self._binding(session, start, num_sequences)
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("logits", "cpu")
        session.run_bound(binding)
        logits: npt.NDArray[np.float32] = binding.get_outputs()[-1].numpy()
        return logits

    def rows(self, layer: int, side: str, slot: int) -> Array:
        """Return a copy of one slot's [K, S, C] keys ("key") or values ("value")."""
        copied: Array = self._buffers[f"{layer}.{side}"].numpy()[slot].copy()
        return copied

    def _binding(self, session: Session, start: int, size: int) -> Any:
        """Return a graph's binding to a range, whose past and present are the same memory; made once."""
        if (session, start, size) not in self._bindings:
            binding = session.binding()
            offset_bytes = start * int(np.prod(self._slot_shape)) * self._dtype.itemsize
            for name, buffer in self._buffers.items():
                place = (
                    session.device,
                    0,
                    self._dtype,
                    (size, *self._slot_shape),
                    buffer.data_ptr() + offset_bytes,
                )
                binding.bind_input(f"past_key_values.{name}", *place)
                binding.bind_output(f"present.{name}", *place)
            self._bindings[session, start, size] = binding
        return self._bindings[session, start, size]


def bind_decoder(decoders: Mapping[str, Session], dims: DecoderDims, shape: CacheShape) -> BoundDecoder:
    """Return what `open_decoders` opened, bound to a new cache.

    Raises:
        MachineError: The cache is larger than what the machine can promise.
        SignatureError: The two graphs do not take and give the same tensors.
    """
    return BoundDecoder(decoders["decoder"], dims, shape, decoders.get("decoder_prefill"))


def runtime_version() -> str:
    """Return the version of ONNX Runtime.

    Raises:
        MachineError: It is not installed.
    """
    return str(_runtime().__version__)


def available_providers() -> list[str]:
    """Return the execution providers that the installed ONNX Runtime was built with."""
    return list(_runtime().get_available_providers())


def failure_of(probe: Path, provider: str) -> str | None:
    """Return why a model without inputs cannot run on a provider, in one line, or None where it runs."""
    runtime = _runtime()
    options = _session_options(runtime, EngineSettings(intra_threads=1))
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1" if provider != _CPU else "0")
    try:
        runtime.InferenceSession(str(probe), options, providers=[provider]).run(None, {})
    except Exception as error:  # whatever the runtime raises is the finding
        return str(error).splitlines()[0]
    return None
