"""A bundle's graphs run one request at a time, for measuring: what a variant answers, and how sure it is.

This is no server: no batching, no cache kept between requests. The engine is in `serving`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from PIL import Image

from bundle.errors import BundleFormatError, MachineError, QuantizationError
from bundle.image import ImageSpec, TileLayout
from bundle.manifest import DualEncoderDims, Manifest
from bundle.prompt import PromptBuilder, Turn
from bundle.text import Tokenizer

Array = NDArray[Any]
Float32 = NDArray[np.float32]
_Part = TypeVar("_Part")
_REFUSALS = (ort_errors.Fail, ort_errors.InvalidGraph, ort_errors.NotImplemented, ort_errors.RuntimeException)


class Graph:
    """One ONNX graph on the CPU.

    Args:
        path: The `.onnx` file.
        threads: Per operator; 0 means one per physical core.

    Raises:
        MachineError: The runtime lacks an operator of the graph.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors; a quantized graph warns about shapes that it need not know
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # several sessions share the cores
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except _REFUSALS as error:
            raise MachineError(
                f"{path}: ONNX Runtime {ort.__version__} cannot run it: {str(error).splitlines()[0]}. "
                "Install a newer one, or see what this machine has with: pocketvlm doctor"
            ) from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Return all outputs by name."""
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))


@dataclass(frozen=True)
class Prompt:
    """A conversation as the decoder reads it.

    Attributes:
        embeds: [1, T, D] float32, image features in their places.
        is_image: [1, T] bool, where those are.
        pixel_values: [tiles, 3, height, width] that the features are of; None without images.
    """

    embeds: Float32
    is_image: NDArray[np.bool_]
    pixel_values: Float32 | None


@dataclass(frozen=True)
class SeenImages:
    """Images as a vision encoder hands them to a decoder.

    Attributes:
        layouts: How each image was cut; its last tile is always the whole image.
        pixel_values: [I, 3, height, width] that the features are of; None without images.
        features: [I, P, D] float32, the tiles of the first image, then of the second, ...
    """

    layouts: tuple[TileLayout, ...]
    pixel_values: Float32 | None
    features: Float32

    @property
    def whole(self) -> list[Float32]:
        """Each image's features of the tile that shows all of it: [P, D]."""
        ends = np.cumsum([layout.num_tiles for layout in self.layouts])
        return [self.features[end - 1] for end in ends]


@dataclass(frozen=True)
class Prefilled:
    """A decoder's state after a prompt.

    Attributes:
        length: Tokens of the prompt.
        logits: [V] float32, from which the first token of the answer is chosen.
        cache: By input name; never written to, so that several answers may start from it.
    """

    length: int
    logits: Float32
    cache: dict[str, Array]


class VisionLanguageRunner:
    """Prompts, features, logits and greedy answers of a vision-language bundle.

    Args:
        directory: The bundle.
        manifest: Its manifest.
        threads: Per operator; 0 means one per physical core.
    """

    def __init__(self, directory: Path, manifest: Manifest, threads: int = 0) -> None:
        self._dims = _present(manifest.decoder, directory, "decoder sizes")
        self._image_token_id = _present(manifest.image_prompt, directory, "prompt layout").image_token_id
        self._prompts = PromptBuilder.from_bundle(directory, manifest)
        self._images = ImageSpec.from_bundle(directory)
        self._eos_token_ids = manifest.eos_token_ids
        self._vision = Graph(directory / manifest.components["vision_encoder"].file, threads)
        self._embed = Graph(directory / manifest.components["embed_tokens"].file, threads)
        self._directory, self._components, self._threads = directory, manifest.components, threads

    @cached_property
    def _decoder(self) -> Graph:
        # opened late: calibration only wants prompts
        return Graph(self._directory / self._components["decoder"].file, self._threads)

    @cached_property
    def _prefill(self) -> Graph:
        prefill = self._components.get("decoder_prefill")
        return Graph(self._directory / prefill.file, self._threads) if prefill else self._decoder

    def see(self, images: Sequence[Image.Image]) -> SeenImages:
        """Return what the vision encoder makes of images; none are fine."""
        if not images:
            return SeenImages((), None, np.zeros((0, 0, self._dims.hidden_size), np.float32))
        processed = self._images.preprocess(list(images))
        features = self._vision.run({"pixel_values": processed.pixel_values})["image_features"]
        return SeenImages(processed.layouts, processed.pixel_values, np.asarray(features, np.float32))

    def prompt(self, turns: Sequence[Turn], images: Sequence[Image.Image]) -> Prompt:
        """Return the prompt of a conversation and what its images became."""
        return self.prompt_about(turns, self.see(images))

    def prompt_about(self, turns: Sequence[Turn], seen: SeenImages) -> Prompt:
        """Return the prompt of a conversation about images that were seen already."""
        ids = np.array([self._prompts.build(turns, seen.layouts).token_ids], np.int64)
        embeds, is_image = self._embed_ids(ids), ids == self._image_token_id
        embeds[is_image] = seen.features.reshape(-1, embeds.shape[-1])
        return Prompt(embeds, is_image, seen.pixel_values)

    def prompt_embeds(self, turns: Sequence[Turn], images: Sequence[Image.Image]) -> Float32:
        """Return the prompt of a conversation about images, their features in their places: [1, T, D]."""
        return self.prompt(turns, images).embeds

    def answer_ids(self, answer: str) -> list[int]:
        """Return the ids of an answer and of the token that ends it."""
        return [*self._prompts.tokenizer.encode(answer), *self._eos_token_ids[:1]]

    def prefill(self, prompt_embeds: Float32, room_tokens: int) -> Prefilled:
        """Return the state after a prompt, with room for so many tokens more where the model's limit allows."""
        length = prompt_embeds.shape[1]
        cache = self._empty_cache(max(min(length + room_tokens, self._dims.max_positions), length))
        step = self._prefill.run(self._feeds(prompt_embeds, 0, np.array([length - 1]), cache))
        return Prefilled(length, np.asarray(step["logits"][0, 0], np.float32), _handed_on(step))

    def answer_feeds(self, prompt_embeds: Float32, answer_ids: Sequence[int]) -> dict[str, Array]:
        """Return the decoder's inputs for a prompt and its answer in one run, to score each token of the answer."""
        fed = self._embed_ids(np.array([answer_ids[:-1]], np.int64)) if len(answer_ids) > 1 else prompt_embeds[:, :0]
        embeds = np.concatenate([prompt_embeds, fed], axis=1)
        first = prompt_embeds.shape[1] - 1
        return self._feeds(embeds, 0, np.arange(first, embeds.shape[1]), self._empty_cache(embeds.shape[1]))

    def answer_logits(self, prompt_embeds: Float32, answer_ids: Sequence[int]) -> Float32:
        """Return the logits from which each token of a given answer would be chosen: [len(answer_ids), V].

        Teacher forcing: the answer's own tokens are fed, whatever the model would have said.
        """
        return self.forced_logits(self.prefill(prompt_embeds, len(answer_ids)), answer_ids)

    def forced_logits(self, prompt: Prefilled, answer_ids: Sequence[int]) -> Float32:
        """Return what `answer_logits` returns, from a prompt that was run already.

        Raises:
            QuantizationError: The answer does not fit behind the prompt.
        """
        if len(answer_ids) == 1:
            return prompt.logits[None]
        if prompt.length + len(answer_ids) - 1 > _capacity(prompt.cache):
            raise QuantizationError(
                f"a prompt of {prompt.length} tokens and an answer of {len(answer_ids)} exceed the model's "
                f"{self._dims.max_positions}; leave this sample out"
            )
        fed = self._embed_ids(np.array([answer_ids[:-1]], np.int64))
        step = self._decoder.run(self._feeds(fed, prompt.length, np.arange(fed.shape[1]), prompt.cache))
        return np.concatenate([prompt.logits[None], np.asarray(step["logits"][0], np.float32)])

    def reply_ids(self, prompt: Prefilled, max_tokens: int) -> list[int]:
        """Return the greedy reply to a prompt, without the token that ends it."""
        tokens = islice(self.greedy_tokens(prompt), max_tokens)
        return list(takewhile(lambda token_id: token_id not in self._eos_token_ids, tokens))

    def greedy_tokens(self, prompt: Prefilled) -> Iterator[int]:
        """Yield the likeliest token after a prompt and each token after it, until the prompt's room is used up."""
        past, cache, token_id = prompt.length, prompt.cache, int(prompt.logits.argmax())
        yield token_id
        while past < _capacity(cache):
            embeds = self._embed_ids(np.array([[token_id]], np.int64))
            step = self._decoder.run(self._feeds(embeds, past, np.array([0]), cache))
            past, cache, token_id = past + 1, _handed_on(step), int(step["logits"][0, 0].argmax())
            yield token_id

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return a reply as a reader sees it."""
        return self._prompts.tokenizer.decode(list(token_ids))

    def _embed_ids(self, ids: NDArray[np.int64]) -> Float32:
        return np.array(self._embed.run({"input_ids": ids})["inputs_embeds"], np.float32)

    def _feeds(self, embeds: Float32, past: int, wanted: Array, cache: dict[str, Array]) -> dict[str, Array]:
        length = embeds.shape[1]
        feeds = {
            "inputs_embeds": embeds,
            "position_ids": np.arange(past, past + length, dtype=np.int64)[None],
            "past_lengths": np.array([past], np.int64),
            "logits_indices": wanted.astype(np.int64)[None],
        }
        return {**feeds, **cache}

    def _empty_cache(self, capacity: int) -> dict[str, Array]:
        dims = self._dims
        rows = np.zeros((1, dims.num_kv_heads, capacity, dims.head_size), dims.kv_dtype)
        names = (f"past_key_values.{layer}.{part}" for layer in range(dims.num_layers) for part in ("key", "value"))
        return dict.fromkeys(names, rows)


class DualEncoderRunner:
    """Unit-length embeddings of a dual-encoder bundle.

    Args:
        directory: The bundle.
        manifest: Its manifest.
        threads: Per operator; 0 means one per physical core.
    """

    _BATCH = 32

    def __init__(self, directory: Path, manifest: Manifest, threads: int = 0) -> None:
        self._dims: DualEncoderDims = _present(manifest.dual, directory, "embedding sizes")
        self._tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
        self._images = ImageSpec.from_bundle(directory)
        self._vision_file = directory / manifest.components["vision_encoder"].file
        self._text_file = directory / manifest.components["text_encoder"].file
        self._threads = threads

    @cached_property
    def _vision(self) -> Graph:
        return Graph(self._vision_file, self._threads)

    @cached_property
    def _text(self) -> Graph:
        return Graph(self._text_file, self._threads)

    def embed_images(self, images: Sequence[Image.Image]) -> Float32:
        """Return [len(images), E]."""
        batches = (images[at : at + self._BATCH] for at in range(0, len(images), self._BATCH))
        return _unit(np.concatenate([self._vision.run(self.image_feeds(batch))["image_embeds"] for batch in batches]))

    def embed_texts(self, texts: Sequence[str]) -> Float32:
        """Return [len(texts), E]; texts that are too long are cut."""
        batches = [texts[at : at + self._BATCH] for at in range(0, len(texts), self._BATCH)]
        return _unit(np.concatenate([self._text.run(self.text_feeds(batch))["text_embeds"] for batch in batches]))

    def image_feeds(self, images: Sequence[Image.Image]) -> dict[str, Array]:
        """Return the vision encoder's inputs for one batch."""
        return {"pixel_values": self._images.preprocess(list(images)).pixel_values}

    def text_feeds(self, texts: Sequence[str]) -> dict[str, Array]:
        """Return the text encoder's inputs for one batch; texts that are too long are cut."""
        dims = self._dims
        batch = self._tokenizer.encode_batch(
            texts,
            max_tokens=dims.max_text_tokens,
            pad_token_id=dims.pad_token_id,
            pads_to_max=dims.pads_to_max,
            truncate=True,
        )
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def _present(part: _Part | None, directory: Path, what: str) -> _Part:
    if part is None:
        raise BundleFormatError(f"{directory}: the manifest has no {what}; export the checkpoint again")
    return part


def _capacity(cache: dict[str, Array]) -> int:
    return int(next(iter(cache.values())).shape[2])


def _handed_on(step: dict[str, Array]) -> dict[str, Array]:
    return {name.replace("present", "past_key_values"): rows for name, rows in step.items() if name != "logits"}


def _unit(rows: Array) -> Float32:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
