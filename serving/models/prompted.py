"""A model that runs each prompt once through a decoder, and keeps nothing of it: what embeds so, and what ranks so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bundle.dims import EmbedderDims, Pooling
from bundle.directory import Bundle
from bundle.errors import BundleFormatError
from bundle.manifest import ComponentName
from bundle.prompt import Prompt, PromptBuilder, Turn
from bundle.text import Tokenizer
from runtime.canary import check_canary
from runtime.encoders import Vectors
from runtime.filled_prompt import FilledPrompt
from runtime.prompt_embedder import PromptEmbedder
from runtime.room import check_room
from runtime.session import Session
from serving.engine.batching import BatchWorker
from serving.engine.worker import Worker
from serving.models.input_writer import InputWriter, longest_input
from serving.models.one_pass import OnePassModel
from serving.models.pool import PreprocessPool
from serving.models.text_rows import MOST_TOLD_TOKENS
from serving.models.together import together
from serving.models.turns import Turns
from serving.models.vision import VisionStage
from serving.protocol import ImagePart, TextPart
from serving.settings import EngineSettings

_Wanted = tuple[FilledPrompt, Pooling]
_INPUTS_AHEAD = 32
"""Of all requests, that are decoded and written at once; further ones wait for their turn."""


class PromptedModel(OnePassModel):
    """One bundle whose decoder gives something of each prompt.

    Args:
        bundle: Opened.
        settings: Batches, threads, limits.
        pool: Decodes images, fills templates, tokenizes.
        opened: Sessions of the bundle that answer as well, by the graph's name.

    Raises:
        BundleError: A graph, the tokenizer or the template is unusable, or the canary fails.
        MachineError: This machine cannot run it.
    """

    _vision: VisionStage

    def __init__(
        self,
        bundle: Bundle,
        settings: EngineSettings,
        pool: PreprocessPool,
        opened: Mapping[ComponentName, Session] | None = None,
    ) -> None:
        manifest = bundle.manifest
        longest = longest_input(manifest, settings)
        if manifest.embedder is None or longest is None:
            raise BundleFormatError(f"{bundle.directory} has no sizes of vectors; it cannot embed or rank")
        super().__init__(manifest, settings, pool)
        check_room(manifest, None, settings.provider)
        self._dims: EmbedderDims = manifest.embedder
        self._prompts = PromptBuilder.from_bundle(bundle, of_inputs=True)
        self._writer = InputWriter(self._prompts, longest)
        self._longest = longest
        self._vision = VisionStage(bundle, settings, pool)
        self._embedder = PromptEmbedder(bundle, settings, opened or {})
        if settings.check_golden and opened is None:
            check_canary(bundle, {**self._vision.sessions, **self._embedder.sessions})
        self._turns = Turns(_INPUTS_AHEAD)
        self._worker: BatchWorker[_Wanted, Vectors] = BatchWorker(
            f"embed-{manifest.name}",
            self._run,
            lambda wanted: wanted[0].num_tokens,
            settings.chunk_tokens,
            settings.patience,
        )

    @property
    def workers(self) -> Mapping[Worker[Any], Callable[[], None]]:
        """Its threads, and what each runs first."""
        return {self._worker: self._warm_up, **self._vision.workers}

    def _warm_up(self) -> None:
        self._embedder.embed([FilledPrompt(self._writer.write([TextPart("warm-up")], (), "", None, None))])

    def _run(self, wanted: Sequence[_Wanted]) -> list[Vectors]:
        """Return the raw vectors of prompts, of which those that are pooled alike run together."""
        found: dict[int, Vectors] = {}
        for pooling in dict.fromkeys(own for _, own in wanted):
            places = [place for place, (_, own) in enumerate(wanted) if own == pooling]
            found.update(zip(places, self._embedder.raw([wanted[place][0] for place in places], pooling), strict=True))
        return [found[place] for place in range(len(wanted))]

    @property
    def tokenizer(self) -> Tokenizer:
        """The decoder's tokenizer."""
        return self._prompts.tokenizer

    def _ids(self, text: str, adds_special_tokens: bool) -> list[int]:
        self.tokenizer.check_characters(len(text), max(MOST_TOLD_TOKENS, self._longest))
        if not adds_special_tokens:
            return self.tokenizer.encode_plain(text)
        prompt = self._prompts.build([Turn("user", (text,))], ())
        ids: list[int] = prompt.token_ids.tolist()
        return ids

    async def _filled(
        self, owner: str, parts: tuple[TextPart | ImagePart, ...], write: Callable[..., Prompt]
    ) -> FilledPrompt:
        """Return the prompt of texts and images, which is judged before any image is encoded."""
        images = [part for part in parts if isinstance(part, ImagePart)]
        decoded = await together(self._vision.decode(owner, image.data, num_images=len(images)) for image in images)
        prompt = await self._pool.text.run(owner, write, parts, [image.layout for image in decoded])
        encoded = await together(self._vision.encode(owner, image) for image in decoded)
        return FilledPrompt.of(prompt, [image.features for image in encoded])
