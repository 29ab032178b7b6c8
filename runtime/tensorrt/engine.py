"""One engine, loaded: sizes and addresses in, a run out. None of ours ever ran on a device (docs/tensorrt.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bundle import tensors
from bundle.engines import EngineRecord
from bundle.errors import ImageError, MachineError
from runtime.graph import Port
from runtime.tensorrt.kernel_cache import KernelCache
from runtime.tensorrt.library import Library

_STREAM = 0
"""CUDA's default stream, on which ONNX Runtime's copies to and from the host wait as well."""
Shapes = Mapping[str, tuple[int, ...]]


class Engine:
    """An engine of a folder, on the device that it was built for.

    Args:
        library: That built it.
        path: Its file.
        record: What the index says of it.

    Attributes:
        path: Its file.
        inputs: As it declares them; None where a size is free.
        outputs: The same.
        aliases: From an output to the input whose memory it must have: a cache is written where it lies.

    Raises:
        MachineError: It was built by another version, or for another card.
    """

    def __init__(self, library: Library, path: Path, record: EngineRecord) -> None:
        self.path = path
        self._library, self._record, self._log = library, record, library.log()
        if record.key.builder_version != library.version:
            raise MachineError(
                f"{path} was built by {library.name} {record.key.builder_version}, and here is {library.version}, "
                "which loads its own alone. Build it again with: pocketvlm compile"
            )
        self._runtime = library.module.Runtime(self._log)  # outlives its engines
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise MachineError(f"{path} cannot be loaded here: {self._told()}. {self._built_for()}")
        self._kernels = KernelCache.of(library, self._engine, record)
        self._contexts: dict[int, Any] = {}
        self._kept: set[int] = set()
        self.inputs, self.outputs = self._ports()
        self.aliases = self._aliases()

    def profile_of(self, shapes: Shapes) -> int:
        """Return the narrowest profile that holds the shapes of a run's inputs.

        Raises:
            ImageError: None takes images of that size.
            MachineError: None does.
        """
        fitting = [at for at in range(self._engine.num_optimization_profiles) if self._holds(at, shapes)]
        if not fitting:
            self._check_image(shapes)
            raise self._beyond(shapes)
        return min(fitting, key=lambda at: sum(np.prod(self._range(at, name)[2]) for name in shapes))

    def _check_image(self, shapes: Shapes) -> None:
        """Check that a run's images, if it has any, are of a size that the engine was built for."""
        if tensors.PIXEL_VALUES not in shapes:
            return
        size = shapes[tensors.PIXEL_VALUES][2:]
        least, _, most = (sizes[2:] for sizes in self._range(0, tensors.PIXEL_VALUES))
        if not all(a <= b <= c for a, b, c in zip(least, size, most, strict=True)):
            told, shortest, longest = ("{1} x {0}".format(*each) for each in (size, least, most))
            raise ImageError(
                f"the image becomes {told} pixels, and this model's engine takes {shortest} to {longest}. Crop it, or "
                "let the model be compiled with a larger --max-image-side"
            )

    def _beyond(self, shapes: Shapes) -> MachineError:
        """Return what to raise where no profile holds a run."""
        asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        largest = ", ".join(f"{name} {list(self._range(0, name)[2])}" for name in shapes)
        return MachineError(
            f"{self.path} takes no run of {asked}; its largest is {largest}. Let engine.context_tokens be what "
            "--cache-rows was, and max_sequences, prefill_chunk_tokens and vision_batch_tiles at most --max-batch, "
            "--max-prompt-tokens and --max-images; or compile anew"
        )

    def shapes_of(self, profile: int, inputs: Shapes) -> dict[str, tuple[int, ...]]:
        """Set the shapes of a run's inputs, and return those of its outputs."""
        context = self._context(profile)
        for name, shape in inputs.items():
            if not context.set_input_shape(name, shape):
                raise MachineError(f"{self.path} refuses {name} {list(shape)}: {self._told()}")
        return {port.name: tuple(context.get_tensor_shape(port.name)) for port in self.outputs}

    def run(self, profile: int, addresses: Mapping[str, int]) -> None:
        """Start a run over memory of the device; whoever reads an output waits for it.

        Args:
            profile: Whose shapes were set.
            addresses: Of every input and output.

        Raises:
            MachineError: It cannot be started.
        """
        context = self._context(profile)
        for name, address in addresses.items():
            context.set_tensor_address(name, address)
        if not context.execute_async_v3(_STREAM):
            raise MachineError(f"{self.path}: a run failed: {self._told()}")
        if profile not in self._kept:
            self._kept.add(profile)
            self._kernels.keep()

    def _context(self, profile: int) -> Any:
        """Return what runs a profile; made once, when kernels may be compiled."""
        if profile not in self._contexts:
            made = self._kernels.context(self._engine)
            if made is None or not made.set_optimization_profile_async(profile, _STREAM):
                raise MachineError(f"{self.path}: no room for a run: {self._told()}")
            self._contexts[profile] = made
        return self._contexts[profile]

    def _holds(self, profile: int, shapes: Shapes) -> bool:
        def is_within(name: str, shape: tuple[int, ...]) -> bool:
            least, _, most = self._range(profile, name)
            return len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

        return all(is_within(name, shape) for name, shape in shapes.items())

    def _range(self, profile: int, name: str) -> list[tuple[int, ...]]:
        return [tuple(sizes) for sizes in self._engine.get_tensor_profile_shape(name, profile)]

    def _ports(self) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        module, engine = self._library.module, self._engine
        sides: dict[Any, list[Port]] = {module.TensorIOMode.INPUT: [], module.TensorIOMode.OUTPUT: []}
        for at in range(engine.num_io_tensors):
            name = engine.get_tensor_name(at)
            dtype = np.dtype(module.nptype(engine.get_tensor_dtype(name))).name
            shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
            sides[engine.get_tensor_mode(name)].append(Port(name, dtype, shape))
        return tuple(sides[module.TensorIOMode.INPUT]), tuple(sides[module.TensorIOMode.OUTPUT])

    def _aliases(self) -> dict[str, str]:
        """Return which outputs lie where inputs do; none before TensorRT 10.15, which has no update of a cache."""
        ask = getattr(self._engine, "get_aliased_input_tensor", None)
        if ask is None:
            return {}
        return {port.name: str(source) for port in self.outputs if (source := ask(port.name))}

    def _told(self) -> str:
        return next((" ".join(line.split()) for line in self._log.errors), f"{self._library.name} does not say why")

    def _built_for(self) -> str:
        key = self._record.key
        cards = ", ".join(key.capabilities) or key.card or "the card of the machine that built it, or by default"
        return f"It was built for {cards}; build it for this one with: pocketvlm compile"
