"""The towers of one export, written as graphs of a bundle and held against the export."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bundle import tensors
from bundle.dims import DualEncoderDims
from bundle.directory import Bundle, sha256_of
from bundle.errors import UnsupportedConfigError
from bundle.golden import Recording, canary_image, canary_token_ids, check, save_golden
from bundle.manifest import Component, ComponentName, Role, TensorSpec
from export.adopted.exported import Exported, Scores, pooled
from export.adopted.folder import ExportedGraphs
from export.adopted.labels import label_layers
from export.adopted.processing import Processing
from export.adopted.tower import Cut, Pooling, cut_tower, open_exported
from graphs.layers import find_tables
from graphs.store import save_graph, weight_bytes
from runtime.graph import Array
from runtime.session import Session
from runtime.settings import RuntimeSettings

Say = Callable[[str], None]
_SHOWN_TOKENS = 12
"""Of the texts that an export is run on, where it does not want them as long as can be."""
_MOST_RELATIVE = 1e-4
"""Of an output, relative to its largest value, by which a bundle may differ from the export that it was taken from."""


@dataclass(frozen=True)
class Said:
    """What an export may not tell of itself, said by the user.

    Attributes:
        logit_scale: Multiplier of cosines in zero-shot scores, where no output of the export has them.
        logit_bias: Added behind it; where one is said, scores are independent of one another (SigLIP).
        pooling: How a text's tokens become one vector, where no output is that.
    """

    logit_scale: float | None = None
    logit_bias: float | None = None
    pooling: Pooling | None = None


class Adoption:
    """One export on its way into a bundle.

    Args:
        graphs: Its files.
        exported: The same, opened.
        processing: Its tokenizer and preprocessing.
        folder: Where the bundle is written.
        said: What it does not tell.
        say: Told of each step.

    Raises:
        UnsupportedConfigError: No output holds one vector for an image or a text, or what is pooled is not masked.
    """

    def __init__(
        self, graphs: ExportedGraphs, exported: Exported, processing: Processing, folder: Path, said: Said, say: Say
    ) -> None:
        self._said = said
        self._pooling = said.pooling or processing.pooling
        if self._pooling not in (None, "cls") and not exported.masks:
            raise UnsupportedConfigError(
                f"--pooling {self._pooling} wants a graph that takes attention_mask, and {graphs.text} takes none: "
                "which tokens are a text's is not known"
            )
        self._exported = exported
        self._processing = processing
        self._folder = folder
        self._say = say
        self._recordings: dict[Role, Recording] = {}
        self._files: dict[Role, Path] = {"text_encoder": graphs.text}
        self._outputs: dict[Role, str] = {"text_encoder": exported.text_output(self._pooling)}
        if exported.sees:
            self._files["vision_encoder"] = graphs.vision or graphs.text
            self._outputs["vision_encoder"] = exported.image_output()

    def digest(self) -> str:
        """Return a hex SHA-256 over the export's graphs and the weights beside them."""
        files = {file for path in self._files.values() for file in path.parent.glob(f"{path.name}*")}
        return hashlib.sha256("".join(sha256_of(file) for file in sorted(files)).encode()).hexdigest()

    def write(self) -> dict[ComponentName, Component]:
        """Write every tower, and in `golden.npz` what the export itself makes of one image and one text.

        Raises:
            UnsupportedConfigError: An input that is not known, or operators that cannot be brought to ours.
            MachineError: The export cannot be run.
        """
        opened = {path: open_exported(path) for path in self._files.values()}
        written: dict[ComponentName, Component] = {}
        for role, path in self._files.items():
            written[role] = self._write(role, opened[path])
        save_golden(self._folder, self._recordings)
        return written

    def check(self, bundle: Bundle) -> None:
        """Compare what was written with the export, on one image and one text.

        Raises:
            GoldenError: They differ by more than rounding.
        """
        for role, recording in self._recordings.items():
            found = Session(bundle, role, RuntimeSettings()).run(recording.inputs)
            worst = check(role, recording.outputs, found, max_relative=_MOST_RELATIVE)
            self._say(f"{role}: {worst.relative:.1e} of its largest value from what the export gives")

    def dims(self) -> DualEncoderDims:
        """Return sizes and scoring, once the towers are written.

        Raises:
            UnsupportedConfigError: How pairs are scored is neither told nor said, or images and texts have vectors of
                different sizes.
        """
        sizes = {role: _only(recording.outputs).shape[-1] for role, recording in self._recordings.items()}
        if len(set(sizes.values())) != 1:
            raise UnsupportedConfigError(f"vectors are {sizes} wide: those of images and texts cannot be compared")
        scores = self._scores()
        return DualEncoderDims(
            embedding_size=sizes["text_encoder"],
            max_text_tokens=self._processing.max_text_tokens,
            pad_token_id=self._processing.pad_token_id,
            pads_to_max=not self._exported.masks,
            scoring=scores.scoring,
            logit_scale=scores.scale,
            logit_bias=scores.bias,
        )

    def _scores(self) -> Scores:
        said = self._said
        if said.logit_scale is not None:
            return Scores("softmax" if said.logit_bias is None else "sigmoid", said.logit_scale, said.logit_bias or 0.0)
        found = self._exported.scores(self._feeds(2)) if self._exported.sees else Scores("softmax", 1.0, 0.0)
        if found is None:
            raise UnsupportedConfigError(
                "the export gives no logits, so nothing tells how cosines become scores. Say what the checkpoint has: "
                "--logit-scale 100 for OpenAI's CLIP; with --logit-bias where scores are independent (SigLIP)"
            )
        return found

    def _write(self, role: Role, exported: ir.Model) -> Component:
        feeds = self._feeds(1)
        vector = self._exported.run(role, feeds)[self._outputs[role]]
        pooling = self._pooling if role == "text_encoder" else None
        if pooling is not None:
            vector = pooled(vector, feeds[tensors.ATTENTION_MASK], pooling)
        batch, name = ("I", tensors.IMAGE_EMBEDS) if role == "vision_encoder" else ("B", tensors.TEXT_EMBEDS)
        result = TensorSpec(name=name, dtype="float32", shape=(batch, vector.shape[-1]))
        model, taken = cut_tower(exported, Cut(role, self._outputs[role], self._inputs(), result, pooling))
        self._recordings[role] = Recording({spec.name: feeds[spec.name] for spec in taken}, {name: vector})
        longest = self._feeds(1, self._processing.max_text_tokens)
        label_layers(model, {spec.name: longest[spec.name] for spec in taken}, self._folder)
        if role == "text_encoder":
            self._require_rows(model)
        save_graph(model, self._folder / f"{role}.onnx")
        self._say(f"wrote {role}.onnx: {weight_bytes(model) / 1e6:.1f} MB of weights")
        return Component(
            file=f"{role}.onnx",
            role=role,
            scheme="fp32",
            inputs=taken,
            outputs=(result,),
            weight_bytes=weight_bytes(model),
        )

    def _require_rows(self, model: ir.Model) -> None:
        """Check that the tower embeds every token of the tokenizer."""
        token, token_id = self._processing.vocabulary.last
        embedded = [table.num_rows for table in find_tables(model.graph) if table.is_looked_up_by(tensors.INPUT_IDS)]
        if embedded and token_id >= max(embedded):
            raise UnsupportedConfigError(
                f"tokenizer.json gives {token!r} the id {token_id}, the model embeds {max(embedded)} rows: tokenizer "
                "and graphs do not belong together"
            )

    def _inputs(self) -> dict[str, TensorSpec]:
        specs = [TensorSpec(name=name, dtype="int64", shape=("B", "T")) for name in _OF_TEXTS]
        if self._processing.image is not None:
            height, width = self._processing.image.tile_size_px
            specs.append(TensorSpec(name=tensors.PIXEL_VALUES, dtype="float32", shape=("I", 3, height, width)))
        return {spec.name: spec for spec in specs}

    def _feeds(self, count: int, num_tokens: int = 0) -> dict[str, Array]:
        """Return so many images and texts, all different; each text ends as the tokenizer ends them."""
        processing = self._processing
        longest = processing.max_text_tokens
        length = num_tokens or (min(_SHOWN_TOKENS, longest) if self._exported.masks else longest)
        ids = canary_token_ids(len(processing.vocabulary.ids), count * length).reshape(count, length)
        if (end := processing.vocabulary.named_id("eos_token")) is not None:
            ids[:, -1] = end
        feeds: dict[str, Array] = {tensors.INPUT_IDS: ids, tensors.ATTENTION_MASK: np.ones_like(ids)}
        if processing.image is not None:
            shown = [canary_image(160, 112 + 16 * at) for at in range(count)]
            feeds[tensors.PIXEL_VALUES] = processing.image.preprocess(shown).pixel_values[:count]
        return feeds


_OF_TEXTS = (tensors.INPUT_IDS, tensors.ATTENTION_MASK)


def _only(arrays: dict[str, Array]) -> Array:
    (array,) = arrays.values()
    return array
