"""Whole answers of a tiny SmolVLM bundle, against transformers and against itself."""

import asyncio
import dataclasses
import threading
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.directory import Bundle, open_bundle
from bundle.errors import ContextLengthError, ImageError, MachineError, OverloadedError, ParameterError, PromptError
from bundle.image import ImageSpec
from runtime import encoders
from serving.models import pool
from serving.models.crew import Crew
from serving.models.generative import GenerativeModel
from serving.protocol import FinishedEvent, GenerateRequest, Message, TextPart
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=3, max_waiting=5, intra_threads=1, prefill_chunk_tokens=48)


@pytest.fixture
def model(smolvlm_bundle, pool):
    model = GenerativeModel(open_bundle(smolvlm_bundle), SETTINGS, pool)
    model.start()
    yield model
    model.close()


def ending_at(directory: Path, *token_ids: int) -> Bundle:
    """Return a bundle whose answers end at these tokens alone."""
    manifest = open_bundle(directory).manifest
    return Bundle(directory, manifest.model_copy(update={"eos_token_ids": token_ids}))


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(2000):
        if is_so():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.fixture(scope="module")
def reference(smolvlm_checkpoint, check_greedy):
    """The function that checks an answer with transformers, its processor included, and counts the prompt's tokens."""
    pytest.importorskip("torch")
    from transformers import Idefics3Processor, SmolVLMForConditionalGeneration
    from transformers.models.auto.tokenization_auto import AutoTokenizer
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    model = SmolVLMForConditionalGeneration.from_pretrained(smolvlm_checkpoint).eval()
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil.from_pretrained(smolvlm_checkpoint),
        AutoTokenizer.from_pretrained(smolvlm_checkpoint),
        image_seq_len=4,
        chat_template=(smolvlm_checkpoint / "chat_template.jinja").read_text(),
    )

    def check(images: list[bytes], text: str, token_ids: tuple[int, ...], max_tokens: int) -> int:
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        decoded = [Image.open(BytesIO(data)).convert("RGB") for data in images]
        inputs = processor(text=prompt, images=decoded or None, return_tensors="pt")
        check_greedy(model, inputs, token_ids, max_tokens)
        return inputs["input_ids"].shape[1]

    return check


@pytest.mark.parametrize(
    ("sizes", "text"), [([], "What is red?"), ([(70, 50)], "What is it?"), ([(33, 90), (20, 20)], "Which is larger?")]
)
def test_greedy_answers_equal_transformers_token_by_token(
    model, reference, ask, answer, image_bytes, sizes, text
) -> None:
    images = [image_bytes(seed, *size) for seed, size in enumerate(sizes)]

    async def main() -> None:
        found = await answer(model, ask(*images, text, max_tokens=32))
        assert found.finished.usage.prompt_tokens == reference(images, text, found.token_ids, 32)
        assert found.finished.usage.completion_tokens == len(found.token_ids)

    run(main)


def test_concurrent_requests_answer_as_each_does_alone(model, ask, answer, image_bytes) -> None:
    requests = [
        ask("one", max_tokens=20),
        ask(image_bytes(1), "two", max_tokens=9),
        ask(image_bytes(2), image_bytes(1), "three", max_tokens=14, temperature=1.0, seed=5),
        ask("four " * 30, max_tokens=3),
        ask(image_bytes(3, 130, 40), "five", max_tokens=25, temperature=0.7, top_p=0.9, seed=6),
        ask("six", max_tokens=1),
    ]

    async def main() -> None:
        alone = [await answer(model, request) for request in requests]
        together = await asyncio.gather(*(answer(model, request) for request in requests))
        assert [each.token_ids for each in together] == [each.token_ids for each in alone]
        assert [each.text for each in together] == [each.text for each in alone]

    run(main)


def test_a_kept_image_answers_like_a_new_one_and_is_not_encoded_again(model, ask, answer, image_bytes) -> None:
    async def main() -> None:
        new = await answer(model, ask(image_bytes(1), "what", max_tokens=12))
        kept = await answer(model, ask(image_bytes(1), "what", max_tokens=12))
        assert kept.token_ids == new.token_ids
        counts = [(each.finished.usage.image_tokens, each.finished.usage.cached_image_tokens) for each in (new, kept)]
        assert counts == [(counts[0][0], 0), (counts[0][0], counts[0][0])]
        both = await answer(model, ask(image_bytes(1), image_bytes(2), "what", max_tokens=2))
        assert both.finished.usage.cached_image_tokens == counts[0][0]
        assert (model.gauges["image_cache_hits"], model.gauges["image_cache_misses"]) == (2, 2)
        assert new.finished.timings.vision_s > 0

    run(main)


def test_one_image_sent_by_many_at_once_is_encoded_once(model, ask, answer, image_bytes, monkeypatch) -> None:
    runs = []
    encode = encoders.encode_tiles
    monkeypatch.setattr(encoders, "encode_tiles", lambda *work: runs.append(1) or encode(*work))

    async def main() -> None:
        request = ask(image_bytes(7), "what", max_tokens=4)
        answers = await asyncio.gather(*(answer(model, request) for _ in range(6)))
        assert len({each.token_ids for each in answers}) == 1
        assert runs == [1]

    run(main)


def test_a_prompt_longer_than_the_context_is_refused_before_its_images_are_encoded(
    model, ask, answer, image_bytes
) -> None:
    async def main() -> None:
        with pytest.raises(ContextLengthError, match=r"takes \d+ tokens \(\d+ of them for 1 images\).*holds 512"):
            await answer(model, ask(image_bytes(1), "x" * 600))
        assert model.gauges["image_cache_misses"] == 0

    run(main)


def test_an_answer_ends_at_the_end_of_the_context_with_reason_length(smolvlm_bundle, pool, ask, answer) -> None:
    model = GenerativeModel(ending_at(smolvlm_bundle), SETTINGS, pool)
    model.start()

    async def main() -> None:
        finished = (await answer(model, ask("x" * 480))).finished
        assert finished.reason == "length"
        # Every row of the slot holds a token, and the last token sampled needs no row.
        assert finished.usage.prompt_tokens + finished.usage.completion_tokens == 512 + 1

    run(main)
    model.close()


def test_more_requests_than_the_limit_are_refused_and_places_come_free(model, ask, answer) -> None:
    limit = SETTINGS.max_sequences + SETTINGS.max_waiting

    async def main() -> None:
        request = ask("go on", max_tokens=40)
        results = await asyncio.gather(*(answer(model, request) for _ in range(limit + 4)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, OverloadedError)]
        assert len(refused) == 4
        assert "limit is 8" in str(refused[0])
        assert len({result.token_ids for result in results if not isinstance(result, OverloadedError)}) == 1
        await answer(model, request)

    run(main)


def test_closing_the_iterator_frees_the_slot(model, ask) -> None:
    async def main() -> None:
        events = model.generate(ask("go on"))
        await anext(events)
        assert model.gauges["num_requests_running"] == 1
        await events.aclose()
        await until(lambda: model.gauges["num_requests_running"] == 0)
        assert model.gauges["kv_cache_usage_perc"] == 0
        assert model.gauges["num_requests_waiting"] == 0

    run(main)


def test_a_cancelled_task_frees_the_slot_wherever_it_was(model, ask, answer, image_bytes) -> None:
    async def main() -> None:
        for delay_s in (0.0, 0.001, 0.003, 0.01, 0.03):
            task = asyncio.create_task(answer(model, ask(image_bytes(int(delay_s * 1000)), "go on")))
            await asyncio.sleep(delay_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await until(lambda: model.gauges["num_requests_running"] + model.gauges["num_requests_waiting"] == 0)
        assert (await answer(model, ask("hello", max_tokens=3))).finished.usage.completion_tokens == 3

    run(main)


def test_an_answer_ends_before_a_stop_string_and_counts_the_tokens_up_to_it(model, ask, answer) -> None:
    async def main() -> None:
        whole = await answer(model, ask("tell me", max_tokens=30))
        stop = whole.text[6:8]
        place = whole.text.index(stop)
        found = await answer(model, ask("tell me", max_tokens=30, stop=(stop, "never there")))
        assert found.text == whole.text[:place]
        assert found.finished.reason == "stop"
        assert found.token_ids == whole.token_ids[: len(found.token_ids)]
        assert found.finished.usage.completion_tokens == len(found.token_ids) < 30
        await until(lambda: model.gauges["num_requests_running"] == 0)

    run(main)


def test_the_end_token_ends_the_answer_and_is_no_part_of_its_text(smolvlm_bundle, pool, ask, answer) -> None:
    async def main() -> None:
        plain = GenerativeModel(open_bundle(smolvlm_bundle), SETTINGS, pool)
        plain.start()
        whole = await answer(plain, ask("tell me", max_tokens=12))
        plain.close()
        end = whole.token_ids[5]
        ending = GenerativeModel(ending_at(smolvlm_bundle, end), SETTINGS, pool)
        ending.start()
        found = await answer(ending, ask("tell me", max_tokens=12))
        ending.close()
        first = whole.token_ids.index(end)
        assert found.token_ids == whole.token_ids[: first + 1]
        assert found.finished.reason == "stop"
        assert whole.text.startswith(found.text.rstrip("�"))

    run(main)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("stop", ("",)),
        ("stop", ("a", "b", "c", "d", "e")),
    ],
)
def test_sampling_out_of_range_is_refused_by_name(model, ask, answer, name, value) -> None:
    async def main() -> None:
        with pytest.raises(ParameterError, match=f"{name} is") as error:
            await answer(model, ask("hi", **{name: value}))
        assert error.value.param == name

    run(main)


def test_bad_images_and_messages_fail_alone(model, ask, answer, image_bytes) -> None:
    async def main() -> None:
        good = ask(image_bytes(1), "what", max_tokens=6)
        alone = await answer(model, good)
        bad = [ask(b"", "x"), ask(b"GIF89a", "x"), ask(image_bytes(1)[:90], "x"), GenerateRequest("r", "m", ())]
        results = await asyncio.gather(*(answer(model, request) for request in (*bad, good)), return_exceptions=True)
        assert [type(result) for result in results[:-1]] == [ImageError, ImageError, ImageError, PromptError]
        assert results[-1].token_ids == alone.token_ids

    run(main)


def test_a_single_pixel_is_answered(model, ask, answer, image_bytes) -> None:
    async def main() -> None:
        assert (await answer(model, ask(image_bytes(1, 1, 1), "what", max_tokens=2))).finished.usage.image_tokens > 0

    run(main)


def test_a_failing_vision_run_fails_its_request_and_the_next_is_answered(
    model, ask, answer, image_bytes, monkeypatch
) -> None:
    encode = encoders.encode_tiles

    def fail_once(*work: object) -> np.ndarray:
        monkeypatch.setattr(encoders, "encode_tiles", encode)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(encoders, "encode_tiles", fail_once)

    async def main() -> None:
        with pytest.raises(MachineError, match="out of memory"):
            await answer(model, ask(image_bytes(1), "what", max_tokens=2))
        assert (await answer(model, ask(image_bytes(1), "what", max_tokens=2))).finished.usage.completion_tokens == 2
        assert all(worker.fault == "" for worker in model.workers)

    run(main)


def test_timings_and_usage_add_up(model, ask, answer, image_bytes) -> None:
    async def main() -> None:
        finished: FinishedEvent = (await answer(model, ask(image_bytes(1, 32, 32), "hi", max_tokens=5))).finished
        timings = finished.timings
        assert all(value >= 0 for value in dataclasses.astuple(timings))
        assert timings.preprocess_s + timings.vision_s + timings.queue_s <= timings.first_token_s <= timings.total_s
        assert finished.usage.completion_tokens == 5
        assert 0 < finished.usage.image_tokens < finished.usage.prompt_tokens

    run(main)


def test_a_conversation_of_several_turns_is_one_prompt(model, answer) -> None:
    turns = tuple(
        Message(role, (TextPart(text),)) for role, text in (("user", "hi"), ("assistant", "yes"), ("user", "and?"))
    )

    async def main() -> None:
        found = await answer(model, GenerateRequest("r", "m", turns))
        assert found.finished.usage.prompt_tokens > len("hi yes and?")

    run(main)


def test_a_request_with_one_bad_image_leaves_no_work_behind(model, ask, answer, image_bytes, monkeypatch) -> None:
    """What is admitted is bounded; what a failed request left in the pool's queue would not be."""
    go, cut, num_decoded = threading.Event(), pool.cut_if_cheap, []

    def wait(spec: ImageSpec, data: bytes) -> object:
        if data:
            go.wait(20)
            num_decoded.append(1)
        return cut(spec, data)

    monkeypatch.setattr(pool, "cut_if_cheap", wait)
    images = [image_bytes(seed) for seed in range(12)]

    async def main() -> None:
        with pytest.raises(ImageError):
            await answer(model, ask(b"", *images, "what"))
        await asyncio.sleep(0)
        go.set()
        await answer(model, ask(image_bytes(50), "what", max_tokens=1))

    run(main)
    assert len(num_decoded) <= 4  # one per thread of the pool when the request failed, and the next request's


def test_a_prompt_that_no_context_holds_is_refused_before_anything_is_done_with_it(
    model, ask, answer, monkeypatch
) -> None:
    monkeypatch.setattr(Crew, "run", lambda *_: pytest.fail("it was worked on"))

    async def main() -> None:
        with pytest.raises(ContextLengthError, match=r"the text holds 10000000 characters; 512 tokens hold at most"):
            await answer(model, ask(b"", "x" * 10_000_000))

    run(main)


def test_what_a_template_makes_of_a_prompt_is_bounded_before_it_is_tokenized(model, ask, answer, monkeypatch) -> None:
    """Empty messages have no characters of the caller's, and still fill a prompt."""
    from bundle.text import Tokenizer

    request = ask("hi")
    flood = dataclasses.replace(request, messages=(Message("user", (TextPart(""),)),) * 10_000)
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("it was tokenized"))

    async def main() -> None:
        with pytest.raises(ContextLengthError, match="512 tokens hold at most"):
            await answer(model, flood)

    run(main)
