"""What makes vectors of texts and images: the models of `/v1/embeddings`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import ParameterError
from runtime.encoders import Vectors, unit
from serving.models.crew import Crew
from serving.models.one_pass import OnePassModel
from serving.protocol import EmbedInput, EmbedRequest, EmbedResult, ImagePart, JoinedPart

_CUT_AT_ONCE = 1 << 16
"""Numbers: a few tenths of a millisecond."""


class VectorModel(OnePassModel):
    """One model that embeds."""

    does = "embedding"

    @abstractmethod
    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Return one embedding per input, in order.

        Raises:
            RequestError: No inputs, a size to which vectors are not cut, an input that the model does not take.
        """


def check_inputs(
    request: EmbedRequest,
    sizes: Sequence[int],
    *,
    name: str,
    sees_regions: bool = False,
    tasks: Sequence[str] = (),
) -> None:
    """Check what can be told of a request before its inputs are looked at.

    Args:
        request: Of any model.
        sizes: To which the model's vectors may be cut, its own among them.
        name: The model's.
        sees_regions: It has vectors of parts of images.
        tasks: Adapters that a request may choose from.

    Raises:
        ParameterError: No inputs, another size, a box of an image where it has no vectors of those, or a task that the
            model has no adapter for.
    """
    if not sees_regions:
        refuse_boxes(request.inputs, name)
    if request.task is not None and request.task not in tasks:
        has = ", ".join(tasks) or "one way to embed, and no tasks to choose from; leave it out"
        raise ParameterError(f"task {request.task!r:.80}: {request.model} has {has}", "task")
    if request.dimensions not in (None, *sizes):
        raise ParameterError(
            f"dimensions = {request.dimensions}: the model's vectors have {' or '.join(map(str, sizes))} numbers, and "
            "are not cut otherwise",
            "dimensions",
        )
    if not request.inputs:
        raise ParameterError("input is empty; send at least one text or image", "input")


def refuse_boxes(inputs: Sequence[EmbedInput], name: str) -> None:
    """Refuse parts of images, for models that have no vectors of them.

    Raises:
        ParameterError: An image has a box.
    """
    parts = (part for each in inputs for part in (each.parts if isinstance(each, JoinedPart) else (each,)))
    if any(isinstance(part, ImagePart) and part.box is not None for part in parts):
        raise ParameterError(
            f"box: {name} has no vectors of regions; leave it out, and send the region cut out as an image by itself",
            "box",
        )


def cut(vectors: npt.NDArray[Any], size: int | None, *, is_raw: bool) -> Vectors:
    """Return the first numbers of vectors, of unit length unless they are wanted raw."""
    kept = vectors if size is None else vectors[..., :size]
    return np.asarray(kept, np.float32) if is_raw else unit(kept)


async def cut_all(
    crew: Crew, owner: Hashable, vectors: Sequence[npt.NDArray[Any]], size: int | None, *, is_raw: bool
) -> list[Vectors]:
    """Return several vectors cut as one is, on a thread of a crew where they hold much."""
    if sum(each.size for each in vectors) <= _CUT_AT_ONCE:
        return _cut_each(vectors, size, is_raw)
    return await crew.run(owner, _cut_each, vectors, size, is_raw)


def _cut_each(vectors: Sequence[npt.NDArray[Any]], size: int | None, is_raw: bool) -> list[Vectors]:
    return [cut(each, size, is_raw=is_raw) for each in vectors]
