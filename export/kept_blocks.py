"""Graphs that hold a GGUF's blocks as they are: no weight is restored and rounded again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from bundle.errors import QuantizationError
from bundle.form import Form
from bundle.manifest import Scheme
from export.gguf_blocks import has_offsets, held_form
from export.gguf_decoder import GgufTensor
from graphs.layers import Linear, Table, find_linears, find_tables
from quant.rounding.block_codes import BlockCodes
from quant.weights.gather_blocks import BLOCK_SIZES, GatherBlocks
from quant.weights.layer_codes import LayerCodes
from quant.weights.matmul_nbits import MatMulNBits

_SCHEMES: Mapping[frozenset[int], Scheme] = {
    frozenset(): "fp32",
    frozenset({4}): "int4",
    frozenset({8}): "int8-weight-only",
}
"""By the widths that a graph holds; of several, its scheme is "mixed"."""


@dataclass(frozen=True)
class KeptLayers:
    """What became of a graph's layers.

    Attributes:
        held: Name to form, of those that keep their blocks.
        kinds: Name to llama.cpp's type, of all.
    """

    held: Mapping[str, Form]
    kinds: Mapping[str, str]

    @property
    def scheme(self) -> Scheme:
        """What the manifest says of the graph."""
        return _SCHEMES.get(frozenset(form.bits for form in self.held.values()), "mixed")

    @property
    def restored(self) -> dict[str, str]:
        """Name to type of the layers that are float32 now."""
        return {name: kind for name, kind in self.kinds.items() if name not in self.held}

    @property
    def detail(self) -> str:
        """One line per type: how many layers, how they are held."""
        groups = Counter((self.kinds[name], form) for name, form in self.held.items())
        lines = [
            f"{number} x {kind} kept: {form.bits}-bit b{form.block_size}, the file's own numbers"
            for (kind, form), number in groups.items()
        ]
        lines += [f"{number} x {kind} restored to fp32" for kind, number in Counter(self.restored.values()).items()]
        return "\n".join(lines)


def keep_blocks(model: ir.Model, tensors: Mapping[str, GgufTensor]) -> KeptLayers:
    """Rewrite a graph's layers in place to hold the blocks of their tensors, and return what became of each.

    Args:
        model: As exported in the contrib dialect.
        tensors: Weight name to tensor; layers of other names are left alone.
    """
    linears = {layer.name for layer in find_linears(model.graph)} & tensors.keys()
    tables = {layer.name for layer in find_tables(model.graph)} & tensors.keys()
    forms = {name: held_form(tensors[name].kind) for name in linears | tables}
    held = {
        name: form for name, form in forms.items() if form and (name in linears or _fits_table(tensors[name], form))
    }
    _KeptLinears({name: held[name] for name in linears & held.keys()}, tensors)(model)
    _KeptTables({name: held[name] for name in tables & held.keys()}, tensors)(model)
    return KeptLayers(held, {name: tensors[name].kind.name for name in sorted(forms)})


def _fits_table(tensor: GgufTensor, form: Form) -> bool:
    """Return whether the look-up has an operator for a tensor: none adds offsets to rows."""
    return not has_offsets(tensor.kind) and form.block_size in BLOCK_SIZES


def _codes_of(tensor: GgufTensor, name: str) -> BlockCodes:
    found = tensor.try_blocks()
    if found is None:
        raise QuantizationError(f"{name} is {tensor.kind.name}, which has no blocks to keep")
    return found


class _KeptLinears(MatMulNBits):
    """Linear layers with the codes of a file."""

    def __init__(self, layers: Mapping[str, Form], tensors: Mapping[str, GgufTensor]) -> None:
        super().__init__(layers)
        self._tensors = tensors

    def codes(self, linear: Linear, form: Form, block_size: int) -> LayerCodes:
        return LayerCodes.without_float(_codes_of(self._tensors[linear.name], linear.name))


class _KeptTables(GatherBlocks):
    """Tables with the codes of a file."""

    def __init__(self, layers: Mapping[str, Form], tensors: Mapping[str, GgufTensor]) -> None:
        super().__init__(layers)
        self._tensors = tensors

    def codes(self, table: Table, form: Form) -> LayerCodes:
        return LayerCodes.without_float(_codes_of(self._tensors[table.name], table.name))
