"""Several adapters of one decoder, each chosen by a request: how they are found, and put into the decoder's graph."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bundle import tensors
from bundle.adapters import BASE, AdapterDims, AnswerAdapter, split_task
from bundle.errors import CheckpointError, UnsupportedConfigError
from bundle.manifest import ComponentName, TensorSpec, check_name
from export.adapter import Adapter, LowRank
from export.checkpoint import StoredTensor
from export.family import Family, GraphPlan
from export.nn.module import Weight
from export.quantized.packed_projections import PackedProjections
from export.vision_language import VisionLanguage
from graphs.adapters import ChosenAdapters, Floats, SideBySide, reads_chosen_rows
from graphs.layers import Linear, find_linears

ADAPTERS = "adapters"
"""The folder of a checkpoint with adapters of its own (jina-embeddings-v4)."""
_LISTED = 5
_DECODER, _VISION = _CHANGED = ("decoder", "vision_encoder")
"""Graphs that adapters may change."""


@dataclass(frozen=True)
class AdapterSet:
    """Adapters by name, in order of their numbers.

    Attributes:
        names: The first is that of requests which name none.
        changes: Of each adapter, by weight under the graphs' names; none of the base.
        files: That hold them.
        answers: The decoder answers: weights of adapters stay in float, and the vision encoder may be changed as well.
    """

    names: tuple[str, ...]
    changes: tuple[Mapping[str, LowRank], ...]
    files: tuple[Path, ...]
    answers: bool = False

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
        return cls(tuple(tasks), tuple(stored.changes(family.renames, task) for task in tasks), stored.files)

    @classmethod
    def of_folders(cls, folders: Mapping[str, Path], family: Family, *, answers: bool = False) -> AdapterSet:
        """Return the adapters of several folders behind the weights without any.

        Raises:
            CheckpointError: One cannot be read.
            UnsupportedConfigError: One is of another kind.
        """
        stored = [Adapter.open(folder) for folder in folders.values()]
        changes = tuple(_read(each.changes(family.renames), family) for each in stored)
        return cls((BASE, *folders), ({}, *changes), tuple(file for each in stored for file in each.files), answers)

    def told(self, models: Mapping[ComponentName, ir.Model]) -> tuple[AnswerAdapter, ...]:
        """Return what the manifest tells of adapters of a decoder that answers.

        Args:
            models: The graphs, in any state.
        """
        seen = set[str]()
        if _VISION in models:
            seen = {_source(linear.weight) for linear in find_linears(models[_VISION].graph)}
        return tuple(
            AnswerAdapter(
                name=name,
                rank=max(change.down.shape[0] for change in changes.values()),
                num_layers=len(changes),
                changes_vision=not seen.isdisjoint(changes),
            )
            for name, changes in zip(self.names[1:], self.changes[1:], strict=True)
        )

    def put_into(
        self, models: Mapping[ComponentName, ir.Model], plans: Mapping[ComponentName, GraphPlan]
    ) -> dict[ComponentName, GraphPlan]:
        """Change a decoder's graph, and a vision encoder's where it answers, in place; return what they take and give.

        Args:
            models: With their weights.
            plans: That they were built by.

        Raises:
            CheckpointError: A change is of another shape than its weight, or of a weight that there is not.
            UnsupportedConfigError: Something else than a linear layer of these graphs is changed.
        """
        found = {part: _linears(models[part].graph) for part in _CHANGED if part in models}
        sees_alone = _VISION in plans and len(plans[_VISION].inputs) == 1
        open_to = [_DECODER, *([_VISION] if self.answers and sees_alone else [])]
        self._check_known(models, _changeable(models, {part: found[part] for part in open_to}))
        return {**plans, **{part: self._put_into(part, models, plans[part], found[part]) for part in open_to}}

    def _put_into(
        self,
        part: ComponentName,
        models: Mapping[ComponentName, ir.Model],
        plan: GraphPlan,
        linears: Sequence[tuple[Linear, str]],
    ) -> GraphPlan:
        changed = [(linear, source) for linear, source in linears if any(source in each for each in self.changes)]
        if not changed and part == _VISION:
            return plan
        chosen = ChosenAdapters(models[part].graph, "adapter" if self.answers else "linear", of_runs=part == _VISION)
        together: dict[ir.Value, list[tuple[Linear, SideBySide]]] = {}
        for linear, source in changed:
            own = [(number, changes[source]) for number, changes in enumerate(self.changes) if source in changes]
            if isinstance(linear.weight, Weight):
                together.setdefault(linear.input, []).append((linear, _side_by_side(source, linear.weight, own)))
        for layers in together.values():
            if part == _DECODER and reads_chosen_rows(layers[0][0]):
                raise UnsupportedConfigError(
                    f"an adapter changes {_source(layers[0][0].weight)}, an expert that runs the tokens of all "
                    "sequences that chose it, and would not know which adapter each is of. Merge the adapter with "
                    "--lora FOLDER, or take --dialect portable, which runs all experts"
                )
            chosen.change(layers)
        shape: tuple[int | str, ...] = (1,) if part == _VISION else ("B",)
        return replace(plan, inputs=(*plan.inputs, TensorSpec(name=tensors.ADAPTERS, dtype="int64", shape=shape)))

    def _check_known(self, models: Mapping[ComponentName, ir.Model], known: Set[str]) -> None:
        """Check that whatever is changed is there, and can be.

        Raises:
            CheckpointError: Weights that no graph has: the adapter is another model's.
            UnsupportedConfigError: Weights that are not of linear layers that one of several adapters may change.
        """
        for number, (name, changes) in enumerate(zip(self.names, self.changes, strict=True)):
            if number and not changes:
                raise CheckpointError(f"the adapter {name} changes nothing that a graph reads; it would be the base")
            if not (unknown := sorted(changes.keys() - known)):
                continue
            more = f"{', '.join(unknown[:_LISTED])}{' and others' if len(unknown) > _LISTED else ''}"
            if absent := [each for each in unknown if each not in _sources(models)]:
                raise CheckpointError(
                    f"the adapter {name} changes {len(absent)} weights that the checkpoint lacks: "
                    f"{', '.join(absent[:_LISTED])}. It was made for another model, or one that is tied here"
                )
            if self.answers:
                raise UnsupportedConfigError(
                    f"the adapter {name} changes {more}: adapters that a request chooses change linear layers of the "
                    "decoder, and of a vision encoder that reads pixels alone, each stored as one matrix. Merge it "
                    "with --lora FOLDER into a bundle of its own"
                )
            raise UnsupportedConfigError(
                f"adapters that a request chooses change linear layers of the decoder, and these change "
                f"{more}: images are encoded "
                "once for all adapters, and other weights are of one adapter alone. Merge each with --lora FOLDER into "
                "a bundle of its own"
            )


def found_adapters(checkpoint: Path, family: Family, folders: Mapping[str, Path], name: str = "") -> AdapterSet | None:
    """Return the adapters that a decoder is to hold, and let a family that embeds tell of them; None: there are none.

    Args:
        checkpoint: The folder, which may have some of its own.
        family: Of the checkpoint.
        folders: Of others, by name.
        name: Of the model.

    Raises:
        CheckpointError: Some cannot be read.
        UnsupportedConfigError: They are not of the kind, the decoder ranks or does two things, or the checkpoint has
            its own.
    """
    own = family.own_adapters if isinstance(family, VisionLanguage) else ()
    if not folders:
        return AdapterSet.of_one_folder(checkpoint / ADAPTERS, own, family) if own else None
    first, how = next(iter(folders)), family.embedding if isinstance(family, VisionLanguage) else None
    if own or not isinstance(family, VisionLanguage) or (how and (how.also_answers or how.choice is not None)):
        raise UnsupportedConfigError(
            f"--lora {first}=FOLDER: requests choose adapters of a decoder that answers, or of one that embeds "
            "(--task embed), and that has none by itself; not of one that does both, and no request for scores of "
            "pairs names one. Merge each adapter with --lora FOLDER into a bundle of its own, and serve them together"
        )
    if how is None:
        _check_ids(folders, name)
        return AdapterSet.of_folders(folders, family, answers=True)
    _check_tasks(folders)
    found = AdapterSet.of_folders(folders, family)
    adapters = tuple(AdapterDims(name=each) for each in found.names)
    family.embedding = replace(how, adapters=adapters)
    return found


def _check_tasks(folders: Mapping[str, Path]) -> None:
    """Check that a request to embed can say each name.

    Raises:
        UnsupportedConfigError: One is the base's, or one that no request can say.
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


def _check_ids(folders: Mapping[str, Path], model: str) -> None:
    """Check that each name can be a model's, beside the base's own.

    Raises:
        UnsupportedConfigError: One cannot.
    """
    for name in folders:
        try:
            check_name(name)
        except ValueError as error:
            raise UnsupportedConfigError(f"--lora {name}=...: {error}. Choose another one") from error
        if name == model:
            raise UnsupportedConfigError(
                f"--lora {name}=...: the model itself is served as {model}, and a request chooses an adapter as it "
                "chooses a model; give the adapter another name, or the model one with --name"
            )


def _read(changes: Mapping[str, LowRank], family: Family) -> dict[str, LowRank]:
    """Return changes by the weights that graphs read.

    Without those of weights that none reads, such as a tower's last layer, and of packed projections one by one.
    """
    skipped, stored = [re.compile(pattern) for pattern in family.skipped()], family.stored_weights()
    if isinstance(stored, PackedProjections):
        changes = {part: each for name, change in changes.items() for part, each in _parts(stored, name, change)}
    return {name: change for name, change in changes.items() if not any(each.fullmatch(name) for each in skipped)}


def _parts(stored: PackedProjections, name: str, change: LowRank) -> Iterator[tuple[str, LowRank]]:
    """Yield the changes of single projections that a checkpoint keeps in one matrix: rows of it are rows of B."""
    if isinstance(change.up, StoredTensor):
        for part, up in stored.restored({name: change.up}, set()).items():
            yield part, replace(change, up=up)


def _linears(graph: ir.Graph) -> list[tuple[Linear, str]]:
    """Return the linear layers of a graph, each with the checkpoint's name of its matrix."""
    return [(linear, _source(linear.weight)) for linear in find_linears(graph)]


def _changeable(
    models: Mapping[ComponentName, ir.Model], found: Mapping[ComponentName, Sequence[tuple[Linear, str]]]
) -> set[str]:
    """Return the checkpoint's names of matrices that linear layers of graphs read, and nothing else of the model.

    Args:
        models: All graphs.
        found: Linear layers, with their matrices' names, of those graphs that are told of adapters.
    """
    read = {id(linear.node) for linears in found.values() for linear, _ in linears}
    others = set[str]()
    for part, model in models.items():
        for weight in model.graph.initializers.values():
            readers = (node for use in weight.uses() for node in _behind_transpose(use.node))
            if isinstance(weight, Weight) and any(id(node) not in read or part not in found for node in readers):
                others.update(weight.source_keys)
    return {source for linears in found.values() for _, source in linears} - others


def _behind_transpose(node: ir.Node) -> list[ir.Node]:
    """Return what reads a weight: a node, or those behind it that read the weight turned."""
    return [use.node for use in node.outputs[0].uses()] if node.op_type == "Transpose" else [node]


def _sources(models: Mapping[ComponentName, ir.Model]) -> set[str]:
    """Return the checkpoint's names of all that graphs are made of."""
    weights = (value for model in models.values() for value in model.graph.initializers.values())
    return {key for weight in weights if isinstance(weight, Weight) for key in weight.source_keys}


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
