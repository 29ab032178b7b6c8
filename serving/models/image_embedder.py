"""A model that embeds images and reads no texts, ready to serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bundle.dims import VectorSizes
from bundle.directory import Bundle
from bundle.errors import BundleFormatError, ParameterError, TaskError
from bundle.text import Tokenizer
from runtime.canary import check_canary
from runtime.encoders import Vectors
from runtime.room import check_room
from serving.engine.worker import Worker
from serving.models.pool import PreprocessPool
from serving.models.together import together
from serving.models.tokens import told_tokens
from serving.models.vectors import VectorModel, check_inputs, cut
from serving.models.vision import VisionStage
from serving.protocol import EmbedRequest, EmbedResult, ImagePart, JoinedPart, TokenizeRequest, TokenizeResult
from serving.settings import EngineSettings


class ImageEmbedderModel(VectorModel):
    """One bundle of an image tower.

    Args:
        bundle: Opened.
        settings: Batches, threads, limits.
        pool: Decodes images.

    Raises:
        BundleError: The graph is unusable, or the canary fails.
        MachineError: This machine cannot run it.
    """

    _vision: VisionStage

    def __init__(self, bundle: Bundle, settings: EngineSettings, pool: PreprocessPool) -> None:
        manifest = bundle.manifest
        if manifest.image_vectors is None:
            raise BundleFormatError(f"{bundle.directory} has no sizes of vectors of images; it cannot embed")
        super().__init__(manifest, settings, pool)
        check_room(manifest, None, settings.provider)
        self._dims: VectorSizes = manifest.image_vectors
        self._vision = VisionStage(bundle, settings, pool)
        if settings.check_golden:
            check_canary(bundle, self._vision.sessions)

    @property
    def workers(self) -> Mapping[Worker[Any], Callable[[], None]]:
        """Its threads, and what each runs first."""
        return self._vision.workers

    @property
    def tokenizer(self) -> Tokenizer:
        """None that it has.

        Raises:
            TaskError: Always.
        """
        raise TaskError(f"{self._manifest.name} reads images only and has no tokens. Name a model that reads texts.")

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Refuse to, as `tokenizer` does, a conversation too."""
        return told_tokens(self.tokenizer, [])

    def _ids(self, text: str, adds_special_tokens: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=adds_special_tokens)

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Return one unit vector per image, in order; no tokens are read.

        Raises:
            RequestError: No inputs, a size to which vectors are not cut, a text, several images in one input, vectors
                of tokens, an instruction, bytes that are not an image.
        """
        check_inputs(request, self._dims.sizes, name=self._manifest.name)
        images = self._images_of(request)
        with self._admission.admit():
            vectors = await together(self._embed_one(request.request_id, image) for image in images)
        return EmbedResult(cut(np.stack(vectors), request.dimensions, is_raw=request.is_raw), 0)

    def _images_of(self, request: EmbedRequest) -> list[ImagePart]:
        """Return the inputs, all of which are images.

        Raises:
            TaskError: Some are not, or are several.
            ParameterError: An instruction, or a vector of each token.
        """
        name = self._manifest.name
        if request.instruction is not None:
            raise ParameterError(f"instruction: {name} reads images only and is told none; leave it out", "instruction")
        if request.granularity == "token":
            raise ParameterError(
                f"return_multivector, or task token_embed: {name} has one vector of each image; leave it out"
            )
        images = [part for part in request.inputs if isinstance(part, ImagePart)]
        if joined := [part for part in request.inputs if isinstance(part, JoinedPart)]:
            raise TaskError(
                f"an input of {len(joined[0].parts)} parts: {name} reads images only, one in each input; send each "
                "image as an input of its own",
                "input",
            )
        if len(images) < len(request.inputs):
            raise TaskError(
                f"{len(request.inputs) - len(images)} of {len(request.inputs)} inputs are texts: {name} reads images "
                "only. Send images, or name a model that embeds texts too (/v1/models tells each one's task).",
                "input",
            )
        return images

    async def _embed_one(self, owner: str, image: ImagePart) -> Vectors:
        """Return [E] as the graph gives it."""
        encoded = await self._vision.encode(owner, await self._vision.decode(owner, image.data))
        vector: Vectors = encoded.features[0]
        return vector
