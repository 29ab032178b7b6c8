"""The two things that every block is made of: modules, and weights that know where they come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxscript.nn

from graphs.labels import Label


class Module(onnxscript.nn.Module):  # type: ignore[misc]
    """A block of a graph; named and nested as in the checkpoint, so that weights are found by name."""


class ModuleList(onnxscript.nn.ModuleList):  # type: ignore[misc]
    """Modules numbered 0, 1, ...; iterated over, never called."""


class Weight(onnxscript.nn.Parameter):  # type: ignore[misc]
    """A float32 initializer of the graph, filled from the checkpoint.

    Args:
        shape: As the graph stores it.
        transposed: The checkpoint stores [out, in] and the graph wants [in, out].
        name: The last part of its name; the attribute's name by default.
        source: The last part of its key in the checkpoint where that differs from `name`.
        rows: Half-open range of the checkpoint's first axis that is this weight; all by default.
        order: In which the graph wants the checkpoint's first axis; as it is by default.
        in_order: In which it wants the second one.
        label: What the layer that reads it is; None for what is no layer, such as norms and biases.
    """

    def __init__(
        self,
        *shape: int,
        transposed: bool = False,
        name: str | None = None,
        source: str | None = None,
        rows: tuple[int, int] | None = None,
        order: npt.NDArray[np.int64] | None = None,
        in_order: npt.NDArray[np.int64] | None = None,
        label: Label | None = None,
    ) -> None:
        super().__init__(list(shape), name=name)
        if label is not None:
            label.write(self)
        self.transposed = transposed
        self.rows = rows
        self.order = order
        self.in_order = in_order
        self._rename = (name or "", source or name or "")

    @property
    def source_keys(self) -> tuple[str, ...]:
        """The keys in the checkpoint, once the weight is part of a graph."""
        own, source = self._rename
        return (str(self.name).removesuffix(own) + source,)

    @property
    def is_linear(self) -> bool:
        """Whether a layer y = x @ W reads it, which is what quantized checkpoints quantize."""
        return self.transposed

    @property
    def is_as_stored(self) -> bool:
        """Whether the checkpoint's tensor, whole and in its order, is the weight; its number format aside."""
        return type(self) is Weight and not self.transposed and self.rows is None and self.order is None

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape can fill this weight, or its part of it."""
        wanted = tuple(int(size) for size in self.shape)
        wanted = wanted[::-1] if self.transposed else wanted
        if self.rows is None:
            return stored == wanted
        return stored[1:] == wanted[1:] and self.rows[1] <= stored[0]

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return the checkpoint's tensors, in order of `source_keys`, as the graph stores them, contiguous."""
        (stored,) = parts
        kept = stored if self.rows is None else stored[slice(*self.rows)]
        kept = kept if self.order is None else kept[self.order]
        kept = kept if self.in_order is None else kept[:, self.in_order]
        return np.ascontiguousarray(kept.T if self.transposed else kept)
