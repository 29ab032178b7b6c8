"""Answers held against the same without their images: against transformers, against themselves, and refused."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.errors import ContextLengthError, ParameterError
from serving.models.contrasting import check_contrast
from serving.models.generative import GenerativeModel
from serving.protocol import M3ID, VCD, GenerateRequest, KVCompression, VisionReduction
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=4, max_waiting=8, intra_threads=1, prefill_chunk_tokens=48)
QUESTION = "What is it?"
NEVER_SURE = M3ID(decay=0.3, confidence=1.0)


@pytest.fixture
def model(smolvlm_bundle, pool):
    model = GenerativeModel(open_bundle(smolvlm_bundle), SETTINGS, pool)
    model.start()
    yield model
    model.close()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.fixture(scope="module")
def logits_of(smolvlm_checkpoint):
    """The function from an image or none, pixels in its place, and an answer to [T, V] float64 by transformers."""
    torch = pytest.importorskip("torch")
    from transformers import Idefics3Processor, SmolVLMForConditionalGeneration
    from transformers.models.auto.tokenization_auto import AutoTokenizer
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    reference = SmolVLMForConditionalGeneration.from_pretrained(smolvlm_checkpoint).eval()
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil.from_pretrained(smolvlm_checkpoint),
        AutoTokenizer.from_pretrained(smolvlm_checkpoint),
        image_seq_len=4,
        chat_template=(smolvlm_checkpoint / "chat_template.jinja").read_text(),
    )

    def compute(data: bytes | None, token_ids: tuple[int, ...], pixels: Any = None) -> Any:
        content = [*([{"type": "image"}] if data else []), {"type": "text", "text": QUESTION}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        images = [Image.open(BytesIO(data)).convert("RGB")] if data else None
        inputs = dict(processor(text=prompt, images=images, return_tensors="pt"))
        if pixels is not None:
            assert inputs["pixel_values"].shape == (1, *pixels.shape)
            inputs["pixel_values"] = torch.from_numpy(pixels)[None]
        ids = torch.cat([inputs["input_ids"], torch.tensor([token_ids])], dim=1)
        with torch.no_grad():
            logits = reference(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
        return logits[0, -len(token_ids) - 1 : -1].double().numpy()

    return compute


def log_chances(logits: Any) -> Any:
    largest = logits.max(axis=1, keepdims=True)
    return logits - largest - np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))


def check_chosen(scores: Any, token_ids: tuple[int, ...], tolerance: float) -> None:
    """Check that each token has the largest score of its row, or one as large."""
    rows = np.arange(len(token_ids))
    assert (scores.max(axis=1) - scores[rows, list(token_ids)] <= tolerance).all()
    usual = np.median(np.where(np.isfinite(scores), scores, -1e9), axis=1)
    assert (scores.max(axis=1) - usual > 10 * tolerance).all()  # else any token would do


def test_m3id_chooses_what_transformers_logits_with_and_without_the_image_say(
    model, logits_of, ask, answer, image_bytes
) -> None:
    async def main() -> None:
        found = await answer(model, ask(image_bytes(1), QUESTION, max_tokens=16, contrast=NEVER_SURE))
        ids = found.token_ids
        own, bare = (log_chances(logits_of(data, ids)) for data in (image_bytes(1), None))
        weights = np.expm1(0.3 * np.arange(len(ids)))[:, None]
        check_chosen(own + weights * (own - bare), ids, 2e-3 * (1 + 2 * weights.max()))
        plain = await answer(model, ask(image_bytes(1), QUESTION, max_tokens=16))
        assert ids[0] == plain.token_ids[0]  # nothing is forgotten yet
        assert ids != plain.token_ids

    run(main)


def test_vcd_chooses_what_transformers_logits_of_image_and_noise_say(
    model, logits_of, ask, answer, image_bytes
) -> None:
    async def main() -> None:
        data = image_bytes(1)
        how = VCD(alpha=1.0, beta=0.05, noise_step=700)
        ids = (await answer(model, ask(data, QUESTION, max_tokens=16, contrast=how))).token_ids
        decoded = await model._vision.decode("r", data, wants_pixels=True)
        [noisy] = model._vision._groups(decoded.under_noise(700))
        own, spoilt = logits_of(data, ids), logits_of(data, ids, noisy)
        scores = np.where(own >= own.max(axis=1, keepdims=True) + math.log(0.05), 2 * own - spoilt, -np.inf)
        check_chosen(scores, ids, 6e-3)
        assert ids != (await answer(model, ask(data, QUESTION, max_tokens=16))).token_ids

    run(main)


@pytest.mark.parametrize("how", [VCD(alpha=0), M3ID(decay=0), M3ID(confidence=0)], ids=str)
def test_a_contrast_of_nothing_changes_nothing_and_takes_one_row(model, ask, answer, image_bytes, how) -> None:
    async def main() -> None:
        request = ask(image_bytes(1), QUESTION, max_tokens=12, temperature=1.0, seed=3, top_logprobs=2)
        events = [event async for event in model.generate(request)]
        held = dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, contrast=how))
        found = []
        async for event in model.generate(held):
            found.append(event)
            assert model.gauges["num_requests_running"] <= 1
        told = [(event.token_ids, event.logprobs) for event in events[:-1]]
        assert [(event.token_ids, event.logprobs) for event in found[:-1]] == told

    run(main)


def test_contrasted_answers_are_the_same_alone_and_beside_others(model, ask, answer, image_bytes) -> None:
    requests = [
        ask(image_bytes(1), QUESTION, max_tokens=14, contrast=VCD()),
        ask("plain", max_tokens=20),
        ask(image_bytes(2), image_bytes(1), "two", max_tokens=9, contrast=M3ID(0.1, 1.0)),
        ask(image_bytes(1), "three", max_tokens=12, temperature=1.0, seed=4, contrast=VCD(2.0, 0.0, 900)),
    ]

    async def main() -> None:
        alone = [(await answer(model, request)).token_ids for request in requests]
        together = await asyncio.gather(*(answer(model, request) for request in requests))
        assert [each.token_ids for each in together] == alone
        assert model.gauges["num_requests_running"] == 0

    run(main)


def test_a_cancelled_contrast_frees_both_its_rows(model, ask, image_bytes) -> None:
    async def main() -> None:
        events = model.generate(ask(image_bytes(1), QUESTION, max_tokens=40, ignores_eos=True, contrast=VCD()))
        await anext(events)
        assert model.gauges["num_requests_running"] == 2
        await events.aclose()
        for _ in range(2000):
            if not model.gauges["num_requests_running"]:
                break
            await asyncio.sleep(0.005)
        assert model.gauges["num_requests_running"] == model.gauges["num_requests_waiting"] == 0

    run(main)


def refusal(request: GenerateRequest, manifest: Any, **fields: Any) -> str:
    given = {"num_seats": 2, "vision": VisionReduction("uniform", 1.0), "compression": None, **fields}
    with pytest.raises(ParameterError) as caught:
        check_contrast(request, manifest, **given)
    assert caught.value.param == "contrast"
    return str(caught.value)


def test_what_no_contrast_goes_with_is_refused_by_name(smolvlm_bundle, ask, image_bytes) -> None:
    manifest = open_bundle(smolvlm_bundle).manifest
    shown = ask(image_bytes(1), "a", contrast=VCD())
    assert "shows no image" in refusal(ask("a", contrast=VCD()), manifest)
    assert "noise_step is 1000" in refusal(ask(image_bytes(1), contrast=VCD(noise_step=1000)), manifest)
    assert "--max-sequences 2" in refusal(shown, manifest, num_seats=1)
    assert "pooling chooses among image tokens" in refusal(shown, manifest, vision=VisionReduction("pooling", 0.5))
    assert "knorm drops rows" in refusal(shown, manifest, compression=KVCompression("knorm", 0.5))
    assert "fused prefixes" in refusal(dataclasses.replace(shown, behind=b"x"), manifest)
    assert "task vectors" in refusal(dataclasses.replace(shown, learns=True), manifest)
    states = tuple(state.model_copy(update={"kind": "fixed"}) for state in manifest.states)
    assert "states of kind fixed" in refusal(shown, manifest.model_copy(update={"states": states}))


def test_two_prompts_that_do_not_fit_the_cache_together_are_refused(
    smolvlm_bundle, ask, answer, image_bytes, pool
) -> None:
    bundle = open_bundle(smolvlm_bundle)
    settings = SETTINGS.model_copy(
        update={"context_tokens": 256, "kv_memory_bytes": 256 * bundle.manifest.state_bytes_per_token}
    )
    model = GenerativeModel(bundle, settings, pool)
    model.start()
    try:
        words = "one two three " * 8
        plain = asyncio.run(answer(model, ask(image_bytes(1, 20, 20), words, max_tokens=1)))
        assert plain.finished.usage.prompt_tokens > 127
        with pytest.raises(ContextLengthError, match="two prompts take"):
            asyncio.run(answer(model, ask(image_bytes(1, 20, 20), words, max_tokens=1, contrast=VCD())))
    finally:
        model.close()
