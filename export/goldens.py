"""One small run of each freshly written graph, recorded into the bundle."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.golden import Recording, canary_image, canary_token_ids, save_golden
from bundle.image import ImageSpec
from bundle.manifest import Component, ComponentName, DecoderDims

_CANARY_TOKENS = 12
_KEPT_OF_DECODER = ("logits", "present.0.key", "present.0.value")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Canary:
    """The inputs that a bundle's graphs are run on.

    Attributes:
        pixel_values: [1, 3, height, width] float32.
        input_ids: [1, T] int64.
        decoder: Sizes of the cache; None for dual encoders.
    """

    pixel_values: Array
    input_ids: Array
    decoder: DecoderDims | None

    @classmethod
    def make(
        cls, image: ImageSpec, vocab_size: int, end_token_ids: tuple[int, ...], decoder: DecoderDims | None
    ) -> Canary:
        """Return the canary of a model; the ids close with the first end token, where a text tower pools."""
        ids = canary_token_ids(vocab_size, _CANARY_TOKENS)
        if end_token_ids:
            ids[0, -1] = end_token_ids[0]
        return cls(image.preprocess([canary_image()]).pixel_values[:1], ids, decoder)


def can_record() -> bool:
    """Return whether ONNX Runtime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def record_goldens(folder: Path, components: Mapping[ComponentName, Component], canary: Canary) -> None:
    """Run every graph in `folder` once on the canary and write `golden.npz`."""
    recordings: dict[str, Recording] = {
        "vision_encoder": _record(folder, components["vision_encoder"], canary.pixel_values)
    }
    ids = canary.input_ids
    if canary.decoder is None:
        recordings["text_encoder"] = _record(folder, components["text_encoder"], ids, np.ones_like(ids))
    else:
        embedded = _record(folder, components["embed_tokens"], ids)
        step = _first_step(canary.decoder, embedded.outputs["inputs_embeds"])
        run = _record(folder, components["decoder"], *step)
        kept = {name: run.outputs[name] for name in _KEPT_OF_DECODER}
        recordings |= {"embed_tokens": embedded, "decoder": Recording(run.inputs, kept)}
    save_golden(folder, recordings)


def _first_step(dims: DecoderDims, embeds: Array) -> list[Array]:
    """Return the decoder's inputs for a prefill into an empty cache just large enough, logits of the last token."""
    length = embeds.shape[1]
    rows = np.zeros((1, dims.num_kv_heads, length, dims.head_size), dims.kv_dtype)
    indices = [np.arange(length)[None], np.zeros(1, np.int64), np.array([[length - 1]])]
    return [embeds, *indices, *[rows] * (2 * dims.num_layers)]


def _record(folder: Path, component: Component, *inputs: Array) -> Recording:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    # one run does not repay a second copy of the weights in the kernels' own layout
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(str(folder / component.file), options, providers=["CPUExecutionProvider"])
    feeds = {spec.name: array for spec, array in zip(component.inputs, inputs, strict=True)}
    found = session.run(None, feeds)
    return Recording(feeds, {spec.name: array for spec, array in zip(component.outputs, found, strict=True)})
