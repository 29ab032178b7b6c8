"""Every weight of the graphs found by name in the checkpoint, and every key of the checkpoint accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from bundle.errors import CheckpointError, MissingWeightError, SurplusWeightError
from export.adapter import Adapter
from export.checkpoint import Checkpoint, StoredTensor, WeightTensor
from export.family import Family
from export.nn.module import Weight
from export.quantized.packed_projections import PackedProjections
from export.quantized.table import refuse_nested
from graphs.labels import Label, LayerRole

_LISTED = 5
"""Names shown in an error; the rest are counted."""


class WeightSource:
    """A checkpoint's tensors under the names of the graphs, restored where they are quantized.

    Args:
        checkpoint: Where they lie.
        family: Its renames, stand-ins and unused keys.
        graphs: What `fill` gives values to.
        decoder: Weights that take the place of the checkpoint's decoder.
        adapter: Merged into the checkpoint's weights.

    Raises:
        CheckpointError: Two keys become the same name, quantized tensors contradict the config, or the adapter is of
            another model.
        UnsupportedConfigError: Weights are quantized in a way that is not read.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: Family,
        graphs: Iterable[ir.Graph],
        decoder: Mapping[str, WeightTensor] | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self._family = family
        self._used: set[str] = set()
        self._weights = [
            value for graph in graphs for value in graph.initializers.values() if isinstance(value, Weight)
        ]
        linears = {key for weight in self._weights if weight.is_linear for key in weight.source_keys}
        stored = _under_graph_names(checkpoint, family)
        if decoder is not None:
            stored = {name: tensor for name, tensor in stored.items() if not family.is_of_decoder(name)}
        self._given = frozenset(decoder or ())
        refuse_nested(family.config)
        self._tensors = {**family.stored_weights().restored(stored, linears), **(decoder or {})}
        if adapter is not None:
            packed = family.stored_weights()
            parts = partial(packed.restored, linears=set()) if isinstance(packed, PackedProjections) else dict
            self._tensors = adapter.merged(self._tensors, family.renames, parts)

    def fill(self) -> None:
        """Give every weight of the graphs its value, not yet read, and label the table that is the head's matrix.

        Raises:
            MissingWeightError: The checkpoint lacks some.
            CheckpointError: One has another shape than the config says.
        """
        wanted = {key for weight in self._weights for key in weight.source_keys}
        missing = sorted(key for key in wanted if self._key(key) is None)
        if missing:
            raise MissingWeightError(
                f"the checkpoint lacks {len(missing)} weights that the graphs want: {_shown(missing)}. "
                "It may be incomplete, or of a layout that this family does not know."
            )
        for weight in self._weights:
            weight.const_value = self._lazy(weight)
        heads, tables = self._labelled("head"), self._labelled("table")
        for table in tables:
            if any(self._is_tied(table, head) for head in heads):
                Label("tied table").write(table)

    def require_all_used(self) -> None:
        """Check that no key is left over.

        Raises:
            SurplusWeightError: Names the keys that no graph read.
        """
        known = (*self._family.skipped(), *(re.escape(name) for name in self._family.scalars))
        left = [k for k in self._tensors if k not in self._used and not any(re.fullmatch(p, k) for p in known)]
        if left:
            raise SurplusWeightError(
                f"the checkpoint holds {len(left)} weights that no graph uses: {_shown(sorted(left))}. "
                "Dropping them would change the model; nothing was exported."
            )

    def scalar(self, name: str) -> float:
        """Return a weight of one element.

        Raises:
            MissingWeightError: There is none.
        """
        if name not in self._tensors:
            raise MissingWeightError(f"the checkpoint lacks {name!r}")
        return float(self._tensors[name].read().reshape(-1)[0])

    def _labelled(self, role: LayerRole) -> list[Weight]:
        return [weight for weight in self._weights if Label.try_read(weight) == Label(role)]

    def _is_tied(self, table: Weight, head: Weight) -> bool:
        """Return whether both are one tensor of the checkpoint, or two of the same numbers."""
        if len(table.source_keys) > 1:
            return False
        first, second = (self._tensors[key] for weight in (table, head) for key in self._keys(weight))
        return first is second or (first.shape == second.shape and np.array_equal(first.read(), second.read()))

    def _keys(self, weight: Weight) -> list[str]:
        """Return where a weight that is not missing lies."""
        return [self._key(key) or key for key in weight.source_keys]

    def _key(self, name: str) -> str | None:
        if name in self._tensors:
            return name
        stand_in = self._family.stand_ins().get(name)
        return stand_in if stand_in in self._tensors else None

    def _lazy(self, weight: Weight) -> ir.LazyTensor:
        keys = self._keys(weight)
        for key in keys:
            if not weight.fits(self._tensors[key].shape):
                where = "in the GGUF file" if key in self._given else "in the checkpoint"
                raise CheckpointError(
                    f"{key} is {list(self._tensors[key].shape)} {where}; the config asks for {weight.shape}"
                    f"{' transposed' if weight.transposed else ''}. Config and weights do not belong together."
                )
        self._used.update(keys)
        parts = [self._tensors[key] for key in keys]
        if len(parts) == 1 and isinstance(parts[0], StoredTensor) and weight.is_as_stored:
            return _Streamed(weight, parts[0])
        return ir.LazyTensor(
            lambda: ir.tensor(weight.from_stored([part.read() for part in parts])),
            dtype=ir.DataType.FLOAT,
            shape=weight.shape,
            name=weight.name,
        )


class _Streamed(ir.LazyTensor):  # type: ignore[misc]
    """A weight whose numbers lie in the checkpoint as the graph wants them: written without being in memory at once.

    A table of tokens is the largest weight of a model, and of Gemma 4 E2B it is 9 GB in float32.
    """

    def __init__(self, weight: Weight, stored: StoredTensor) -> None:
        super().__init__(
            lambda: ir.tensor(weight.from_stored([stored.read()])),
            dtype=ir.DataType.FLOAT,
            shape=weight.shape,
            name=weight.name,
        )
        self._stored = stored

    def tofile(self, file: BinaryIO) -> None:
        """Write the numbers behind what a file holds."""
        for piece in self._stored.pieces():
            file.write(piece.data)


def _under_graph_names(checkpoint: Checkpoint, family: Family) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for key, tensor in checkpoint.tensors.items():
        name = _renamed(key, family.renames)
        if name in tensors:
            raise CheckpointError(f"{checkpoint.folder}: two keys mean {name!r}; one of them is {key!r}")
        tensors[name] = tensor
    return tensors


def _renamed(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def _shown(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
