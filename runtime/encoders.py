"""Encoders run on many inputs: images in runs of bounded size, texts padded to one another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle import tensors
from bundle.dims import DualEncoderDims
from bundle.errors import SignatureError
from bundle.image import Pixels
from bundle.image_tokens import TOWER_OUTPUTS
from bundle.manifest import Component
from bundle.question import Asked
from bundle.text import TextBatch
from runtime.encoder import Encoder

Vectors = npt.NDArray[np.float32]
WHOLE = (0.0, 0.0, 0.0, 0.0)
"""The box of a whole image."""


def vision_feeds(
    component: Component, pixel_values: Pixels, question: Asked | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Return a vision encoder's inputs for the pixels of I tiles, which are shown with one question or the same boxes.

    Where it takes boxes and there are none, all of each tile is meant. Of an encoder with adapters, the number of the
    one that sees them stands in the place of a question; none: the encoder as it is.

    Raises:
        SignatureError: The encoder reads a question, and there is none.
    """
    pixels, *more = component.inputs
    feeds: dict[str, npt.NDArray[Any]] = {pixels.name: pixel_values}
    for spec in more:
        if spec.name == tensors.BOXES:
            boxes = np.array(question or WHOLE, np.float32).reshape(1, -1, len(WHOLE))
            feeds[spec.name] = np.tile(boxes, (len(pixel_values), 1, 1))
            continue
        if spec.name == tensors.ADAPTERS:
            feeds[spec.name] = np.array(question or (0,), np.int64)
            continue
        if spec.name != tensors.QUESTION_IDS or question is None:
            raise SignatureError(f"{component.file} takes {spec.name} beside pixels, and none was given")
        feeds[spec.name] = np.tile(np.array(question, np.int64), (len(pixel_values), 1))
    return feeds


def encode_tiles(
    encoder: Encoder, pixel_values: Pixels, most_tiles: int, question: Asked | None = None
) -> npt.NDArray[Any]:
    """Return what a vision encoder makes of the pixels of I tiles, at most so many in one run."""
    pieces = [
        encoder.run(vision_feeds(encoder.component, tiles, question))[encoder.output]
        for tiles in _runs(pixel_values, most_tiles)
    ]
    return np.concatenate(pieces) if len(pieces) != 1 else pieces[0]


def see_tiles(
    encoder: Encoder, pixel_values: Pixels, most_tiles: int, question: Asked | None = None
) -> npt.NDArray[Any]:
    """Return the features of I tiles, and behind each row what the tower's attention says of it: [I, P, D + 1 + C].

    Raises:
        SignatureError: The encoder does not give that.
    """
    pieces = []
    for tiles in _runs(pixel_values, most_tiles):
        run = encoder.run(vision_feeds(encoder.component, tiles, question), TOWER_OUTPUTS)
        received, keys = (run[name] for name in TOWER_OUTPUTS)
        pieces.append(np.concatenate([run[encoder.output], received[..., None], keys], axis=-1))
    return np.concatenate(pieces)


def _runs(pixel_values: Pixels, most_tiles: int) -> Iterator[Pixels]:
    return (pixel_values[start : start + most_tiles] for start in range(0, len(pixel_values), most_tiles))


def encode_images(
    encoder: Encoder,
    images: Sequence[Sequence[Pixels]],
    most_tiles: int,
    *,
    questions: Sequence[Asked | None] = (),
    with_tower: bool = False,
) -> list[npt.NDArray[Any]]:
    """Return what a vision encoder makes of images, at most so many tiles in one run: of one size, and one question.

    Args:
        encoder: The encoder.
        images: Of each image, its tiles in groups of one size.
        most_tiles: In one run.
        questions: Of each image, where the encoder reads it beside the pixels.
        with_tower: What the tower's attention says stands behind each row, as `see_tiles` puts it.
    Returns:
        Of each image [tiles, P, D], or [rows, D] where its tiles differ in size; the arrays are new.
    """
    encode = see_tiles if with_tower else encode_tiles
    asked = questions or [None] * len(images)
    alike: dict[tuple[tuple[int, ...], Asked | None], list[tuple[int, int]]] = defaultdict(list)
    for image, (groups, question) in enumerate(zip(images, asked, strict=True)):
        for group, tiles in enumerate(groups):
            alike[tiles.shape[1:], question].append((image, group))
    encoded: dict[tuple[int, int], npt.NDArray[Any]] = {}
    for (_, question), places in alike.items():
        groups = [images[image][group] for image, group in places]
        features = encode(encoder, np.concatenate(groups) if len(groups) > 1 else groups[0], most_tiles, question)
        ends = np.cumsum([len(tiles) for tiles in groups])
        for place, tiles, end in zip(places, groups, ends, strict=True):
            encoded[place] = features[end - len(tiles) : end].copy()
    return [_joined([encoded[image, group] for group in range(len(groups))]) for image, groups in enumerate(images)]


def _joined(groups: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return the features of an image's groups of tiles as one array."""
    return groups[0] if len(groups) == 1 else np.concatenate([each.reshape(-1, each.shape[-1]) for each in groups])


def split_seen(encoder: Encoder, seen: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return features [..., D] and the tower's view [..., 1 + C] of what `see_tiles` returned."""
    size = encoder.component.outputs[0].shape[-1]
    if not isinstance(size, int):
        raise SignatureError(f"{encoder.path} gives features of no certain size. Export the checkpoint again.")
    return seen[..., :size], seen[..., size:]


def encode_texts(
    encoder: Encoder, rows: Sequence[TextBatch], dims: DualEncoderDims, *, told: Sequence[str] = ()
) -> Vectors | list[Vectors]:
    """Return [n, E] of n texts in one run, or [T, E] of each; shorter ones are padded on the right and masked.

    Args:
        encoder: Of texts.
        rows: At least one.
        dims: Of the model.
        told: Optional outputs [n, ...] whose numbers stand behind each of [n, E].
    """
    run = encoder.run(text_feeds(rows, dims, encoder.component), told)
    vectors: Vectors = run[encoder.output]
    if dims.vectors == "one":
        return np.concatenate([vectors, *(run[name] for name in told)], axis=1) if told else vectors
    lengths = [int(mask.sum()) for row in rows for mask in row.attention_mask]
    return [own[:length].copy() for own, length in zip(vectors, lengths, strict=True)]


def text_feeds(
    rows: Sequence[TextBatch], dims: DualEncoderDims, component: Component
) -> dict[str, npt.NDArray[np.int64]]:
    """Return a text encoder's inputs for tokenized texts, shorter ones padded on the right and masked.

    Args:
        rows: At least one.
        dims: Of the model.
        component: The encoder's entry in the manifest: one that reads padded texts may take no mask.
    """
    num_rows, width = sum(len(row.input_ids) for row in rows), max(row.input_ids.shape[1] for row in rows)
    input_ids = np.full((num_rows, width), dims.pad_token_id, np.int64)
    attention_mask = np.zeros((num_rows, width), np.int64)
    at = 0
    for row in rows:
        of_row = slice(at, at + len(row.input_ids)), slice(row.input_ids.shape[1])
        input_ids[of_row], attention_mask[of_row] = row.input_ids, row.attention_mask
        at += len(row.input_ids)
    feeds = {tensors.INPUT_IDS: input_ids, tensors.ATTENTION_MASK: attention_mask}
    return {spec.name: feeds[spec.name] for spec in component.inputs}


def unit(vectors: npt.NDArray[Any]) -> Vectors:
    """Return rows [..., E] of length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)
