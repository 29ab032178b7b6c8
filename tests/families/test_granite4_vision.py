"""Granite 4 Vision's own: a decoder in the names of Granite 4.0's hybrids, of which no layer is recurrent."""

from __future__ import annotations

import asyncio
import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from bundle.errors import UnsupportedConfigError
from bundle.prompt import Placeholder, Turn
from export.exporter import export_checkpoint
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import FinishedEvent, GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings


def hybrid(text: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a text config as a hybrid's; `more` overrides."""
    names = {"model_type": "granitemoehybrid", "position_embedding_type": "rope", "num_local_experts": 0}
    inner = {"shared_intermediate_size": text["intermediate_size"], "intermediate_size": 8}
    return {**text, **names, **inner, "layer_types": ["attention"] * text["num_hidden_layers"], **more}


def test_a_hybrid_without_recurrent_layers_is_the_same_decoder(sample_of: Any, tmp_path: Path) -> None:
    """Its feed-forward gates the second half of one matrix by the first (transformers, `GraniteMoeHybridMLP`)."""
    sample = sample_of("granite4_vision", 0)
    folder = Path(shutil.copytree(sample.checkpoint, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "text_config": hybrid(config["text_config"])}))
    weights = load_file(folder / "model.safetensors")
    for layer in (f"model.language_model.layers.{n}." for n in range(config["text_config"]["num_hidden_layers"])):
        gate, up, down = (weights.pop(f"{layer}mlp.{name}_proj.weight") for name in ("gate", "up", "down"))
        weights[f"{layer}shared_mlp.input_linear.weight"] = np.concatenate([gate, up])
        weights[f"{layer}shared_mlp.output_linear.weight"] = down
    save_file(weights, folder / "model.safetensors")
    made = export_checkpoint(folder, tmp_path / "bundle", name="tiny").files
    wanted = sample.bundle().manifest.files
    assert made["decoder.onnx.data"] == wanted["decoder.onnx.data"]
    assert made["decoder.onnx"] == wanted["decoder.onnx"]


@pytest.mark.parametrize(
    "told",
    [{"layer_types": ["mamba"] + ["attention"] * 5}, {"num_local_experts": 8}, {"position_embedding_type": None}],
)
def test_recurrent_layers_experts_and_no_positions_are_refused(
    told: dict[str, Any], sample_of: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sample_of("granite4_vision", 0).checkpoint, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    text = hybrid(config["text_config"], **told)
    (folder / "config.json").write_text(json.dumps({**config, "text_config": text}))
    with pytest.raises(UnsupportedConfigError, match="built are layers of attention alone, 0 experts and rope"):
        export_checkpoint(folder, tmp_path / "bundle", name="tiny")


def test_features_of_all_layers_go_with_their_tokens_however_prompts_are_cut(
    sample_of: Any, conversations: dict[str, Any]
) -> None:
    """Several at once, in runs of seven tokens, and again behind what the first left in the cache."""
    bundle = sample_of("granite4_vision", 0).bundle()
    wide = conversations["one image"][0]
    chats = [*conversations.values(), [wide, " and ", wide, "?"]]
    runner = VisionLanguageRunner(bundle, RuntimeSettings(intra_threads=1))
    expected = [runner.reply_ids(runner.prefill(runner.prompt(_turns(chat), _images(chat)), 12), 12) for chat in chats]

    async def main() -> list[list[list[int]]]:
        settings = EngineSettings(max_sequences=3, intra_threads=1, prefill_chunk_tokens=7)
        pool = PreprocessPool(settings)
        model = GenerativeModel(bundle, settings, pool)
        model.start()
        try:
            return [await asyncio.gather(*(_said(model, chat) for chat in chats)) for _ in range(2)]
        finally:
            model.close()
            pool.close()

    ends = bundle.manifest.eos_token_ids
    for answers in asyncio.run(main()):
        assert [[token for token in answer if token not in ends] for answer in answers] == expected


def _turns(parts: list[str | Image.Image]) -> list[Turn]:
    return [Turn("user", tuple(part if isinstance(part, str) else Placeholder.IMAGE for part in parts))]


def _images(parts: list[str | Image.Image]) -> list[Image.Image]:
    return [part for part in parts if isinstance(part, Image.Image)]


async def _said(model: GenerativeModel, parts: list[str | Image.Image]) -> list[int]:
    content = tuple(TextPart(part) if isinstance(part, str) else ImagePart(_png(part)) for part in parts)
    request = GenerateRequest("r", "tiny", (Message("user", content),), SamplingParams(max_tokens=12, temperature=0.0))
    events = [event async for event in model.generate(request)]
    assert isinstance(events[-1], FinishedEvent)
    return [token for event in events[:-1] for token in event.token_ids]


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
