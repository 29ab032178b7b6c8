"""OpenVINO at the measures of a comparison: `python -m loadtests.peers.openvino_optimum FOLDER`.

The models are optimum-intel's own export, run part by part: openvino-genai's pipeline refuses the type "smolvlm". Its
first token is pixels, tower, merged rows and prefill by hand, without template and tokenizer, which favours it. In an
environment of its own; nothing of ours is imported but this folder.

    python -m loadtests.peers.openvino_optimum --compress FP32_FOLDER OUTPUT --weights int8
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtests.peers.measures import LONGEST_TOKENS, STEPS, Measure
from loadtests.peers.worker import Prepare, Work, serve

_DECODER = "openvino_language_model.xml"
_TOWER = "openvino_vision_embeddings_model.xml"
_TABLE = "openvino_text_embeddings_model.xml"
_TILE_PX, _ENCODER_PX = 512, 224
_VOCABULARY = 49_000
_PROMPT_TOKENS, _IMAGE_AT = 106, 10
"""Of the first token's prompt, as our template and tokenizer make it, and where the image's rows begin in it."""
_CALIBRATION_TILES = 3
_PACKAGES = ("openvino", "optimum-intel", "nncf")


def _opened(file: Path, threads: int) -> Any:
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
    core = openvino.Core()
    return core.compile_model(core.read_model(file), "CPU", options).create_infer_request()


class Generative:
    """An export of a SmolVLM checkpoint.

    Args:
        folder: With a graph for each part.
        threads: Of every operator.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        import numpy as np

        self._np: Any = np
        self._decoder, self._tower, self._table = (
            _opened(folder / name, threads) for name in (_DECODER, _TOWER, _TABLE)
        )
        self._inputs = [port.any_name for port in self._decoder.model_inputs]
        self._ids = np.random.default_rng(0).integers(0, _VOCABULARY, (1, LONGEST_TOKENS), np.int64)
        self._seeds = itertools.count(1)

    @property
    def prepared(self) -> Mapping[str, Prepare]:
        """What it does."""
        return {
            "vision": self._vision,
            "prefill": self._prefill,
            "decode": self._decode,
            "first_token": self._first_token,
        }

    def _tower_feeds(self, tiles: Any) -> dict[str, Any]:
        """Return the tower's inputs for tiles [I, 3, height, width]."""
        np, feeds = self._np, {}
        for port in self._tower.model_inputs:
            name, rank = port.any_name, port.partial_shape.rank.get_length()
            if name == "pixel_values":
                feeds[name] = tiles if rank == 4 else tiles[None]
            elif "position" in name:
                feeds[name] = np.repeat(np.arange(1024, dtype=np.int64)[None], len(tiles), 0)
            else:
                side = (32, 32) if rank == 3 else (1024,)
                feeds[name] = np.ones((len(tiles), *side), port.element_type.to_dtype())
        return feeds

    def _vision(self, measure: Measure) -> Work:
        feeds = self._tower_feeds(_tiles(measure.size, _TILE_PX))
        return (lambda: self._tower.infer(feeds)), 1

    def _logits(self, embeds: Any, num_cached: int) -> Any:
        """Return [B, V] of the last of new rows [B, T, D]."""
        np = self._np
        batch, length = embeds.shape[:2]
        positions = np.repeat(np.arange(num_cached, num_cached + length, dtype=np.int64)[None], batch, 0)
        feeds = {
            "inputs_embeds": embeds,
            "attention_mask": np.ones((batch, num_cached + length), np.int64),
            "position_ids": positions,
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        found = self._decoder.infer({name: value for name, value in feeds.items() if name in self._inputs})
        return next(iter(found.values()))[:, -1]

    def _next(self, ids: Any, num_cached: int) -> Any:
        """Return the tokens [B, 1] behind ids [B, T]."""
        embeds = self._table.infer({0: ids})[0]
        return self._logits(embeds, num_cached).argmax(-1)[:, None].astype(self._np.int64)

    def _prefill(self, measure: Measure) -> Work:
        self._decoder.reset_state()
        ids = self._ids[:, : measure.size]
        return (lambda: self._next(ids, 0)), 1

    def _decode(self, measure: Measure) -> Work:
        self._decoder.reset_state()
        prompt = self._np.repeat(self._ids[:, : measure.cached_tokens], measure.size, 0)
        first = self._next(prompt, 0)

        def steps() -> None:
            tokens = first
            for step in range(STEPS):
                tokens = self._next(tokens, measure.cached_tokens + step)

        return steps, STEPS

    def _first_token(self, measure: Measure) -> Work:
        np = self._np
        seed = 0 if measure.is_repeated else next(self._seeds)
        image = np.random.default_rng(seed).integers(0, 255, (_TILE_PX, _TILE_PX, 3), np.uint8)
        self._decoder.reset_state()

        def answer() -> None:
            pixels = (image.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1)[None]
            rows = next(iter(self._tower.infer(self._tower_feeds(pixels)).values()))
            embeds = np.array(self._table.infer({0: self._ids[:, :_PROMPT_TOKENS]})[0])
            rows = rows.reshape(-1, embeds.shape[-1])
            embeds[0, _IMAGE_AT : _IMAGE_AT + len(rows)] = rows
            self._logits(embeds, 0).argmax()

        return answer, 1


def _tiles(number: int, side_px: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).standard_normal((number, 3, side_px, side_px)).astype(np.float32)


def open_encoder(graph: Path, threads: int) -> Mapping[str, Prepare]:
    """Return what prepares the images of a tower: PocketVLM's own portable graph, read as it is."""
    tower = _opened(graph, threads)

    def encode(measure: Measure) -> Work:
        images = _tiles(measure.size, _ENCODER_PX)
        return (lambda: tower.infer({0: images})), 1

    return {"encode": encode}


def compress(source: Path, output: Path, weights: str) -> None:
    """Write an export whose weights nncf has compressed, and whose tower it has quantized to int8."""
    import nncf
    import openvino

    core = openvino.Core()
    shutil.copytree(source, output)
    modes = {"int8": (nncf.CompressWeightsMode.INT8_ASYM, {}), "int4": (nncf.CompressWeightsMode.INT4_SYM, _INT4)}
    mode, options = modes[weights]
    decoder = nncf.compress_weights(core.read_model(source / _DECODER), mode=mode, **options)
    table = nncf.compress_weights(core.read_model(source / _TABLE), mode=nncf.CompressWeightsMode.INT8_ASYM)
    tower = core.read_model(source / _TOWER)
    tower = nncf.quantize(
        tower, nncf.Dataset(_samples(tower)), model_type=nncf.ModelType.TRANSFORMER, subset_size=_CALIBRATION_TILES
    )
    for name, model in ((_DECODER, decoder), (_TABLE, table), (_TOWER, tower)):
        openvino.save_model(model, output / name, compress_to_fp16=False)


_INT4 = {"group_size": 64, "ratio": 1.0, "all_layers": False}


def _samples(tower: Any) -> list[dict[str, Any]]:
    """Return inputs that a tower's activations are measured on."""
    import numpy as np

    found = []
    for tile in _tiles(_CALIBRATION_TILES, _TILE_PX):
        feeds: dict[str, Any] = {}
        for port in tower.inputs:
            name, rank = port.any_name, port.partial_shape.rank.get_length()
            if name == "pixel_values":
                feeds[name] = tile[None] if rank == 4 else tile[None, None]
            elif "position" in name:
                feeds[name] = np.arange(1024, dtype=np.int64)[None]
            else:
                feeds[name] = np.ones((1, 32, 32) if rank == 3 else (1, 1024), port.element_type.to_dtype())
        found.append(feeds)
    return found


def main() -> None:
    """Answer the comparison's questions, or compress an export."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--weights", choices=("int8", "int4"))
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.weights:
        compress(options.source, options.output, options.weights)
    elif options.source.suffix == ".onnx":
        serve(lambda: open_encoder(options.source, options.threads), _PACKAGES)
    else:
        serve(lambda: Generative(options.source, options.threads).prepared, _PACKAGES)


if __name__ == "__main__":
    main()
