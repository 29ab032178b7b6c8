"""Other families and dialects through the same engine."""

import asyncio
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.directory import open_bundle
from export.exporter import export_checkpoint
from serving.models.embedding import EmbeddingModel
from serving.models.generative import GenerativeModel
from serving.protocol import ClassifyRequest, EmbedRequest, ImagePart, TextPart
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=3, intra_threads=1, prefill_chunk_tokens=48)


def decoded(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")


async def answers_of(directory: Path, pool, answer, requests) -> list[tuple[int, ...]]:
    """Answer requests together with a freshly opened model."""
    model = GenerativeModel(open_bundle(directory), SETTINGS, pool)
    model.start()
    try:
        found = await asyncio.gather(*(answer(model, request) for request in requests))
    finally:
        model.close()
    return [each.token_ids for each in found]


def test_both_dialects_give_the_same_answers_in_one_batch(
    smolvlm_checkpoint, smolvlm_bundle, tmp_path, pool, ask, answer, image_bytes
) -> None:
    export_checkpoint(smolvlm_checkpoint, tmp_path / "portable", dialect="portable")
    requests = [ask(image_bytes(1), "one", max_tokens=16), ask("two", max_tokens=20), ask("three " * 12, max_tokens=9)]

    async def main() -> None:
        portable = await answers_of(tmp_path / "portable", pool, answer, requests)
        assert portable == await answers_of(smolvlm_bundle, pool, answer, requests)

    asyncio.run(main())


@pytest.mark.parametrize(("tower", "text"), [("clip", "llama"), ("siglip", "qwen2")])
def test_llava_answers_as_transformers_does(
    checkpoints, tmp_path, pool, ask, answer, check_greedy, image_bytes, tower: str, text: str
) -> None:
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessorPil,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        SiglipImageProcessorPil,
    )

    checkpoints.save_llava(tmp_path / "checkpoint", checkpoints.llava_config(tower, text))
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle")
    reference = LlavaForConditionalGeneration.from_pretrained(tmp_path / "checkpoint").eval()
    images = CLIPImageProcessorPil if tower == "clip" else SiglipImageProcessorPil
    processor = LlavaProcessor(
        images.from_pretrained(tmp_path / "checkpoint"),
        AutoTokenizer.from_pretrained(tmp_path / "checkpoint"),
        patch_size=checkpoints.PATCH_PX,
        vision_feature_select_strategy=reference.config.vision_feature_select_strategy,
        num_additional_image_tokens=int(tower == "clip"),
        image_token="<image>",
    )
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, chat_template=checkpoints.TEMPLATE
    )
    inputs = processor(text=prompt, images=decoded(image_bytes(3)), return_tensors="pt")

    async def main() -> None:
        request = ask(image_bytes(3), "What is it?", max_tokens=24)
        found = await answers_of(tmp_path / "bundle", pool, answer, [request, request, ask("another", max_tokens=5)])
        assert found[0] == found[1]
        check_greedy(reference, inputs, found[0], 24)

    asyncio.run(main())


def test_siglip_embeds_and_scores_as_transformers_does(checkpoints, tmp_path, pool, image_bytes) -> None:
    import torch
    from transformers import AutoTokenizer, SiglipImageProcessorPil, SiglipModel

    checkpoints.save_siglip(tmp_path / "checkpoint")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle")
    reference = SiglipModel.from_pretrained(tmp_path / "checkpoint").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoint")
    texts, images = ["a cat", "dogs", "x"], [image_bytes(1), image_bytes(2, 40, 90)]
    ids = [[*tokenizer(text, add_special_tokens=True)["input_ids"]] for text in texts]
    length = reference.config.text_config.max_position_embeddings
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in ids])
    pixels = SiglipImageProcessorPil.from_pretrained(tmp_path / "checkpoint")(
        [*map(decoded, images)], return_tensors="pt"
    )
    with torch.no_grad():
        expected = reference(input_ids=padded, pixel_values=pixels["pixel_values"])

    async def main() -> None:
        model = EmbeddingModel(open_bundle(tmp_path / "bundle"), SETTINGS, pool)
        model.start()
        parts = (*map(TextPart, texts), *map(ImagePart, images))
        embedded = await model.embed(EmbedRequest("r", "m", parts))
        scored = await model.classify(ClassifyRequest("r", "m", tuple(map(ImagePart, images)), tuple(texts), ("{}",)))
        model.close()
        vectors = torch.cat([expected.text_embeds, expected.image_embeds]).numpy()
        np.testing.assert_allclose(embedded.embeddings, vectors, atol=1e-4)  # the exporter's own promise
        np.testing.assert_allclose(scored.scores, torch.sigmoid(expected.logits_per_image).numpy(), atol=1e-3)

    asyncio.run(main())
