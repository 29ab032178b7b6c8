"""What an export that others made computes by itself: what the bundle of it is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.manifest import Role
from export.adopted.folder import ExportedGraphs
from export.adopted.tower import Pooling
from runtime.graph import Array, Graph
from runtime.settings import RuntimeSettings

Scoring = Literal["softmax", "sigmoid"]
_OF_IMAGES = ("image_embeds", "pooler_output")
_OF_TEXTS = ("text_embeds", "sentence_embedding")
_OF_TEXTS_BESIDE_IMAGES = (*_OF_TEXTS, "pooler_output")
"""SigLIP's; of a BERT it is no embedding."""
_OF_TOKENS = ("last_hidden_state", "token_embeddings")
_LOGITS = "logits_per_image"
_EXPORT_AS = "Export it with Optimum's task zero-shot-image-classification, or feature-extraction for texts alone"
_MOST_RESIDUE = 1e-3
"""Of a logit, relative to the largest, that scale and bias may leave unexplained: float32 leaves 1e-6."""


@dataclass(frozen=True)
class Scores:
    """How cosines become scores, as `bundle.dims.DualEncoderDims` has it."""

    scoring: Scoring
    scale: float
    bias: float


class Exported:
    """The graphs of an export, opened as they are by ONNX Runtime, which is what Optimum runs them with.

    Args:
        graphs: Where they lie.

    Raises:
        MachineError: ONNX Runtime is missing.
        BundleFileError: A file is no graph.
        UnsupportedConfigError: None of them reads texts.
    """

    def __init__(self, graphs: ExportedGraphs) -> None:
        self.text = Graph(graphs.text, RuntimeSettings(), prepacks=False)
        taken = [port.name for port in self.text.inputs]
        if tensors.INPUT_IDS not in taken:
            raise UnsupportedConfigError(
                f"{graphs.text} takes {', '.join(taken)} and no {tensors.INPUT_IDS}: encoders of images alone are not "
                "adopted. Export the checkpoint itself with pocketvlm export, which lists those that it knows"
            )
        self.vision = self.text if graphs.vision is None else Graph(graphs.vision, RuntimeSettings(), prepacks=False)

    @property
    def sees(self) -> bool:
        """Whether it takes images."""
        return any(port.name == tensors.PIXEL_VALUES for port in self.vision.inputs)

    @property
    def masks(self) -> bool:
        """Whether texts may be shorter than the longest of a batch; a tower without a mask read padded texts."""
        return any(port.name == tensors.ATTENTION_MASK for port in self.text.inputs)

    def image_output(self) -> str:
        """Return the name of the output that holds an image's vector."""
        return _named(self.vision, _OF_IMAGES)

    def text_output(self, pooling: Pooling | None = None) -> str:
        """Return the name of the output that holds a text's vector, or those of its tokens where they are pooled.

        Raises:
            UnsupportedConfigError: There is none.
        """
        whole = _OF_TEXTS_BESIDE_IMAGES if self.sees else _OF_TEXTS
        return _named(self.text, whole if pooling is None else _OF_TOKENS)

    def run(self, role: Role, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output of the graph that holds a tower; what it takes beside the feeds is zeros like the ids.

        Raises:
            MachineError: The run failed.
        """
        graph = self.vision if role == "vision_encoder" else self.text
        zeros = np.zeros_like(feeds[tensors.INPUT_IDS])
        return graph.run({port.name: feeds.get(port.name, zeros) for port in graph.inputs})

    def scores(self, feeds: Mapping[str, Array]) -> Scores | None:
        """Return how the export scores pairs, read off its logits for a few images and texts; None where it has none.

        Args:
            feeds: Two images and two texts or more, all different.

        Raises:
            UnsupportedConfigError: The logits are no scale and bias of cosines.
        """
        if _LOGITS not in {port.name for port in self.text.outputs}:
            return None
        found = self.run("text_encoder", feeds)
        images, texts = (_unit(found[name]) for name in (self.image_output(), self.text_output()))
        cosines, logits = (images @ texts.T).ravel(), np.asarray(found[_LOGITS], np.float64).ravel()
        equations = np.stack([cosines, np.ones_like(cosines)], axis=1)
        (scale, bias), *_ = np.linalg.lstsq(equations, logits, rcond=None)
        residue = np.abs(equations @ [scale, bias] - logits).max()
        if residue > _MOST_RESIDUE * np.abs(logits).max():
            raise UnsupportedConfigError(
                f"{self.text.name}: {_LOGITS} is no scale and bias of the cosines of {self.image_output()} and "
                f"{self.text_output()} (off by {residue:.3g}); how it scores pairs is not known"
            )
        is_sigmoid = abs(bias) > _MOST_RESIDUE * abs(scale)
        return Scores("sigmoid" if is_sigmoid else "softmax", float(scale), float(bias) if is_sigmoid else 0.0)


def _named(graph: Graph, known: tuple[str, ...]) -> str:
    given = [port.name for port in graph.outputs]
    found = next((name for name in known if name in given), None)
    if found is None:
        of_tokens = sorted(set(given).intersection(_OF_TOKENS))
        told = (
            f"{of_tokens[0]} has a vector for each token: say --pooling mean, cls or last" if of_tokens else _EXPORT_AS
        )
        raise UnsupportedConfigError(f"{graph.name} gives {', '.join(given)}, and none of {', '.join(known)}. {told}")
    return found


def pooled(states: Array, mask: Array, pooling: Pooling) -> Array:
    """Return one vector [B, D] of each text's [B, T, D], of which the tokens with a one in the mask [B, T] count."""
    ends = {"cls": np.zeros(len(states), np.int64), "last": mask.sum(axis=1) - 1}
    if pooling in ends:
        vectors: Array = states[np.arange(len(states)), ends[pooling]]
        return vectors
    vectors = (states * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return vectors.astype(states.dtype)


def _unit(vectors: Array) -> Array:
    wide = np.asarray(vectors, np.float64)
    unit: Array = wide / np.linalg.norm(wide, axis=-1, keepdims=True)
    return unit
