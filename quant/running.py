"""A bundle's graphs run one request at a time, for measuring: what a variant answers, and how sure it is.

This is no server: no batching, no cache kept between requests. The engine is in `serving`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from PIL import Image

from bundle.errors import BundleFormatError, MachineError
from bundle.image import ImageSpec
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
        self._decoder = Graph(directory / manifest.components["decoder"].file, threads)

    def prompt_embeds(self, turns: Sequence[Turn], images: Sequence[Image.Image]) -> Float32:
        """Return the prompt of a conversation, image features in their places: [1, T, D]."""
        processed = self._images.preprocess(list(images)) if images else None
        prompt = self._prompts.build(turns, processed.layouts if processed else ())
        ids = np.array([prompt.token_ids], np.int64)
        embeds = self._embed_ids(ids)
        if processed is not None:
            features = self._vision.run({"pixel_values": processed.pixel_values})["image_features"]
            embeds[ids == self._image_token_id] = features.reshape(-1, embeds.shape[-1])
        return embeds

    def answer_ids(self, answer: str) -> list[int]:
        """Return the ids of an answer and of the token that ends it."""
        return [*self._prompts.tokenizer.encode(answer), *self._eos_token_ids[:1]]

    def answer_logits(self, prompt_embeds: Float32, answer_ids: Sequence[int]) -> Float32:
        """Return the logits from which each token of a given answer would be chosen: [len(answer_ids), V].

        Teacher forcing: the answer's own tokens are fed, whatever the model would have said.
        """
        fed = self._embed_ids(np.array([answer_ids[:-1]], np.int64)) if len(answer_ids) > 1 else prompt_embeds[:, :0]
        embeds = np.concatenate([prompt_embeds, fed], axis=1)
        first = prompt_embeds.shape[1] - 1
        step = self._step(embeds, 0, np.arange(first, embeds.shape[1]), self._empty_cache(embeds.shape[1]))
        return np.asarray(step["logits"][0], np.float32)

    def answer(self, prompt_embeds: Float32, max_tokens: int) -> str:
        """Return the greedy answer to a prompt."""
        length = prompt_embeds.shape[1]
        cache = self._empty_cache(min(length + max_tokens, self._dims.max_positions))
        embeds, past, chosen = prompt_embeds, 0, list[int]()
        while len(chosen) < max_tokens and past + embeds.shape[1] <= _capacity(cache):
            step = self._step(embeds, past, np.array([embeds.shape[1] - 1]), cache)
            past += embeds.shape[1]
            cache = {name.replace("present", "past_key_values"): step[name] for name in step if name != "logits"}
            token_id = int(step["logits"][0, 0].argmax())
            if token_id in self._eos_token_ids:
                break
            chosen.append(token_id)
            embeds = self._embed_ids(np.array([[token_id]], np.int64))
        return self._prompts.tokenizer.decode(chosen)

    def _embed_ids(self, ids: NDArray[np.int64]) -> Float32:
        return np.array(self._embed.run({"input_ids": ids})["inputs_embeds"], np.float32)

    def _step(self, embeds: Float32, past: int, wanted: Array, cache: dict[str, Array]) -> dict[str, Array]:
        length = embeds.shape[1]
        feeds = {
            "inputs_embeds": embeds,
            "position_ids": np.arange(past, past + length, dtype=np.int64)[None],
            "past_lengths": np.array([past], np.int64),
            "logits_indices": wanted.astype(np.int64)[None],
        }
        return self._decoder.run({**feeds, **cache})

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
        self._vision = Graph(directory / manifest.components["vision_encoder"].file, threads)
        self._text = Graph(directory / manifest.components["text_encoder"].file, threads)

    def embed_images(self, images: Sequence[Image.Image]) -> Float32:
        """Return [len(images), E]."""
        batches = (images[at : at + self._BATCH] for at in range(0, len(images), self._BATCH))
        pixels = (self._images.preprocess(list(batch)).pixel_values for batch in batches)
        return _unit(np.concatenate([self._vision.run({"pixel_values": each})["image_embeds"] for each in pixels]))

    def embed_texts(self, texts: Sequence[str]) -> Float32:
        """Return [len(texts), E]; texts that are too long are cut."""
        batches = [texts[at : at + self._BATCH] for at in range(0, len(texts), self._BATCH)]
        return _unit(np.concatenate([self._text.run(self._encode(batch))["text_embeds"] for batch in batches]))

    def _encode(self, texts: Sequence[str]) -> dict[str, Array]:
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


def _unit(rows: Array) -> Float32:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
