"""Several adapters of one decoder, each chosen by a request: how they are found, and put into the decoder's graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bundle import tensors
from bundle.adapters import BASE, AdapterDims, split_task
from bundle.errors import CheckpointError, UnsupportedConfigError
from bundle.manifest import TensorSpec
from export.adapter import Adapter, LowRank
from export.family import Family, GraphPlan
from export.nn.module import Weight
from export.vision_language import VisionLanguage
from graphs.adapters import ChosenAdapters, Floats, SideBySide
from graphs.layers import find_linears

ADAPTERS = "adapters"
"""The folder of a checkpoint with adapters of its own (jina-embeddings-v4)."""
_LISTED = 5


@dataclass(frozen=True)
class AdapterSet:
    """Adapters by name, in order of their numbers.

    Attributes:
        names: The first is that of requests which name none.
        changes: Of each adapter, by weight under the graphs' names; none of the base.
        files: That hold them.
    """

    names: tuple[str, ...]
    changes: tuple[Mapping[str, LowRank], ...]
    files: tuple[Path, ...]

    @classmethod
    def of_one_folder(cls, folder: Path, tasks: Sequence[str], family: Family) -> AdapterSet:
        """Return the adapters that a folder holds in one file, a part of the keys for each task.

        Raises:
            CheckpointError: There are none, or none of a task.
            UnsupportedConfigError: They are of another kind than low-rank changes of linear layers.
        """
        if len(set(tasks)) != len(tasks) or not tasks:
            raise UnsupportedConfigError(f"task_names {list(tasks)}: wanted are the names of adapters, each once")
        stored = Adapter.open(folder)
        return cls(tuple(tasks), tuple(stored.changes(family.renames, task) for task in tasks), (stored.file,))

    @classmethod
    def of_folders(cls, folders: Mapping[str, Path], family: Family) -> AdapterSet:
        """Return the adapters of several folders behind the weights without any.

        Raises:
            CheckpointError: One cannot be read.
            UnsupportedConfigError: One is of another kind, or has the name of the base or one that no request can say.
        """
        if BASE in folders:
            raise UnsupportedConfigError(
                f"--lora {BASE}=...: {BASE} is what a request calls the weights without an adapter; choose another name"
            )
        if taken := [name for name in folders if split_task(name)[0] != name]:
            raise UnsupportedConfigError(
                f"--lora {taken[0]}=...: what stands behind the last point is read as what a request's inputs are, and "
                "no request could choose the adapter; choose another name"
            )
        stored = [Adapter.open(folder) for folder in folders.values()]
        changes = tuple(each.changes(family.renames) for each in stored)
        return cls((BASE, *folders), ({}, *changes), tuple(each.file for each in stored))

    def put_into(self, model: ir.Model, plan: GraphPlan) -> GraphPlan:
        """Change a decoder's graph, in place, and return what it takes and gives now.

        Args:
            model: With its weights.
            plan: That it was built by.

        Raises:
            CheckpointError: A change is of another shape than its weight.
            UnsupportedConfigError: Something else than a linear layer of the decoder is changed.
        """
        linears = [(linear, _source(linear.weight)) for linear in find_linears(model.graph)]
        known = {source for _, source in linears}
        if unknown := sorted({name for changes in self.changes for name in changes} - known):
            raise UnsupportedConfigError(
                f"adapters that a request chooses change linear layers of the decoder, and these change "
                f"{', '.join(unknown[:_LISTED])}{' and others' if len(unknown) > _LISTED else ''}: images are encoded "
                "once for all adapters, and other weights are of one adapter alone. Merge each with --lora FOLDER into "
                "a bundle of its own"
            )
        chosen = ChosenAdapters(model.graph)
        for linear, source in linears:
            own = [(number, changes[source]) for number, changes in enumerate(self.changes) if source in changes]
            if own and isinstance(linear.weight, Weight):
                chosen.change(linear, _side_by_side(source, linear.weight, own))
        return replace(plan, inputs=(*plan.inputs, TensorSpec(name=tensors.ADAPTERS, dtype="int64", shape=("B",))))


def found_adapters(checkpoint: Path, family: Family, folders: Mapping[str, Path]) -> AdapterSet | None:
    """Return the adapters that a decoder is to hold, and let a family that embeds tell of them; None: there are none.

    Args:
        checkpoint: The folder, which may have some of its own.
        family: Of the checkpoint.
        folders: Of others, by name.

    Raises:
        CheckpointError: Some cannot be read.
        UnsupportedConfigError: They are not of the kind, the decoder answers, or the checkpoint has its own.
    """
    own = family.own_adapters if isinstance(family, VisionLanguage) else ()
    if not folders:
        return AdapterSet.of_one_folder(checkpoint / ADAPTERS, own, family) if own else None
    how = family.embedding if isinstance(family, VisionLanguage) else None
    if own or not isinstance(family, VisionLanguage) or how is None or how.also_answers or how.choice is not None:
        raise UnsupportedConfigError(
            f"--lora {next(iter(folders))}=FOLDER: requests choose adapters of a decoder that embeds and does nothing "
            "else (--task embed), and that has none by itself. Rows of answers are kept and shared whatever adapter "
            "made them, and no request for scores of pairs names one; merge each adapter with --lora FOLDER into a "
            "bundle of its own, and serve them together"
        )
    found = AdapterSet.of_folders(folders, family)
    adapters = tuple(AdapterDims(name=name) for name in found.names)
    family.embedding = replace(how, adapters=adapters)
    return found


def _source(weight: ir.Value) -> str:
    return weight.source_keys[0] if isinstance(weight, Weight) and len(weight.source_keys) == 1 else ""


def _side_by_side(source: str, weight: Weight, own: Sequence[tuple[int, LowRank]]) -> SideBySide:
    for _, change in own:
        if not weight.fits((change.up.shape[0], change.down.shape[1])):
            raise CheckpointError(
                f"an adapter changes {source} by {[change.up.shape[0], change.down.shape[1]]}, and the checkpoint's is "
                "of another shape; it was made for another model"
            )
    owners = tuple(number for number, change in own for _ in range(change.down.shape[0]))

    def read_down() -> Floats:
        return np.concatenate([change.down.read() for _, change in own]).T

    def read_up() -> Floats:
        # A row of the second matrix belongs to an output, and outputs stand as the weight's do.
        scaled = [change.up.read() * np.float32(change.scale) for _, change in own]
        return weight.from_stored([np.concatenate(scaled, axis=1)])

    return SideBySide(owners, read_down, read_up)
