"""Sampling parameters from a request to its answer: choices, logprobs, structures, and what is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pickle
import re
from collections.abc import Awaitable, Callable
from typing import Any

import jsonschema
import pytest

from bundle.directory import open_bundle
from bundle.errors import OverloadedError, ParameterError
from serving.models.generative import GenerativeModel
from serving.protocol import FinishedEvent, GenerateRequest, Structure, TokenEvent
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=3, max_waiting=2, intra_threads=1, prefill_chunk_tokens=48)


@pytest.fixture
def model(smolvlm_bundle, pool):
    model = GenerativeModel(open_bundle(smolvlm_bundle), SETTINGS, pool)
    model.start()
    yield model
    model.close()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))


def with_choices(request: GenerateRequest, num_choices: int) -> GenerateRequest:
    return dataclasses.replace(request, num_choices=num_choices)


async def events_of(model: GenerativeModel, request: GenerateRequest) -> tuple[list[TokenEvent], FinishedEvent]:
    *pieces, finished = [event async for event in model.generate(request)]
    assert isinstance(finished, FinishedEvent)
    assert pickle.loads(pickle.dumps(pieces)) == pieces  # as they travel between processes
    return pieces, finished


def ids_of(pieces: list[TokenEvent], index: int) -> list[int]:
    return [token_id for piece in pieces if piece.index == index for token_id in piece.token_ids]


def test_choice_i_is_what_the_seed_plus_i_says_alone(model, ask, answer) -> None:
    sampling = {"max_tokens": 12, "temperature": 1.0, "ignores_eos": True}

    async def main() -> None:
        alone = [list((await answer(model, ask("hello", seed=5 + i, **sampling))).token_ids) for i in range(4)]
        pieces, finished = await events_of(model, with_choices(ask("hello", seed=5, **sampling), 4))
        assert [ids_of(pieces, index) for index in range(4)] == alone
        assert len({tuple(ids) for ids in alone}) == 4
        assert finished.usage.completion_tokens == 4 * 12
        one = (await answer(model, ask("hello", **sampling))).finished
        assert finished.usage.prompt_tokens == one.usage.prompt_tokens

    run(main)


def test_each_choice_ends_once_for_its_own_reason(model, ask) -> None:
    async def main() -> None:
        request = with_choices(ask("hello", max_tokens=9, temperature=2.0, seed=1, ignores_eos=True), 3)
        pieces, _ = await events_of(model, request)
        stop = next(piece.text for piece in pieces if piece.index == 1 and piece.text.strip())
        stopped = dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, stop=(stop,)))
        pieces, _ = await events_of(model, stopped)
        for index in range(3):
            own = [piece for piece in pieces if piece.index == index]
            assert [piece.reason for piece in own[:-1]] == [None] * (len(own) - 1)
            text = "".join(piece.text for piece in own)
            assert stop not in text
            assert own[-1].reason == ("stop" if index == 1 or len(ids_of(pieces, index)) < 9 else "length")
        assert {piece.reason for piece in pieces if piece.reason} >= {"stop"}

    run(main)


def test_a_choice_that_is_stopped_is_cancelled_while_others_go_on(model, ask, monkeypatch) -> None:
    cancelled = []
    cancel = model._engine.cancel
    monkeypatch.setattr(model._engine, "cancel", lambda stream: (cancelled.append(stream), cancel(stream)))

    async def main() -> None:
        request = with_choices(ask("hello", max_tokens=100, temperature=2.0, seed=1, ignores_eos=True), 2)
        pieces, _ = await events_of(model, request)
        texts = ["".join(piece.text for piece in pieces if piece.index == index) for index in range(2)]
        stop = next(letter for letter in texts[1][:40] if letter not in texts[0])
        cancelled.clear()
        ended = []
        stopped = dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, stop=(stop,)))
        async for event in model.generate(stopped):
            if isinstance(event, TokenEvent) and event.reason:
                ended.append((event.index, event.reason, len(set(cancelled))))
        assert ended == [(1, "stop", 1), (0, "length", 2)]

    run(main)


def test_choices_take_as_many_places_as_requests_and_free_them(model, ask) -> None:
    async def main() -> None:
        with pytest.raises(OverloadedError):
            await events_of(model, with_choices(ask("hello", max_tokens=1), 6))
        left = model.generate(with_choices(ask("hello"), 5))
        await anext(left)
        with pytest.raises(OverloadedError):
            await events_of(model, ask("hello", max_tokens=1))
        await left.aclose()
        await events_of(model, with_choices(ask("hello", max_tokens=1), 5))
        assert model.gauges["num_requests_running"] == model.gauges["num_requests_waiting"] == 0

    run(main)


def test_logprobs_are_of_every_token_and_spell_the_text(model, ask) -> None:
    async def main() -> None:
        request = ask("hello", max_tokens=20, temperature=1.0, seed=3, top_logprobs=4, ignores_eos=True)
        pieces, _ = await events_of(model, request)
        told = [logprob for piece in pieces for logprob in piece.logprobs]
        assert len(told) == len(ids_of(pieces, 0)) == 20
        assert all(logprob.logprob <= 0 and len(logprob.top) == 4 for logprob in told)
        assert all(list(each.top) == sorted(each.top, key=lambda top: -top.logprob) for each in told)
        tokenizer = model._prompts.tokenizer
        special = {token.text.encode() for token in tokenizer.added_tokens if token.is_special}
        spelled = b"".join(each.data for each in told if each.data not in special)
        assert spelled.decode(errors="replace") == "".join(piece.text for piece in pieces)

    run(main)


def test_the_likeliest_of_a_greedy_answer_are_its_own_tokens(model, ask) -> None:
    async def main() -> None:
        pieces, _ = await events_of(model, ask("hello", max_tokens=8, top_logprobs=1, ignores_eos=True))
        for piece in pieces:
            for each in piece.logprobs:
                assert (each.top[0].data, each.top[0].logprob) == (each.data, each.logprob)

    run(main)


@pytest.mark.parametrize("includes_stop", [False, True])
def test_a_stop_token_ends_the_answer_and_is_in_its_text_where_asked(model, ask, answer, includes_stop) -> None:
    async def main() -> None:
        whole = await answer(model, ask("hello", max_tokens=12, ignores_eos=True))
        stop_id = whole.token_ids[5]
        first = whole.token_ids.index(stop_id)
        found = await answer(
            model, ask("hello", max_tokens=12, stop_token_ids=(stop_id,), includes_stop=includes_stop, ignores_eos=True)
        )
        assert found.token_ids == whole.token_ids[: first + 1]
        assert found.finished.reason == "stop"
        kept = whole.token_ids[: first + includes_stop]
        assert found.text == model._prompts.tokenizer.decode(kept)

    run(main)


STRUCTURES: dict[str, tuple[Structure, Callable[[str], Any]]] = {
    "choice": (Structure("choice", '["red", "blue"]', "guided_choice"), lambda text: text in ("red", "blue")),
    "regex": (Structure("regex", "[ab]{3}-[0-9]{2}", "x"), lambda text: re.fullmatch("[ab]{3}-[0-9]{2}", text)),
    "json": (
        Structure("json", json.dumps({"type": "array", "items": {"type": "boolean"}, "maxItems": 3}), "x"),
        lambda text: len(json.loads(text)) <= 3,
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_each_choice_has_the_structure_that_was_asked_for(model, ask, name, temperature) -> None:
    structure, has_it = STRUCTURES[name]

    async def main() -> None:
        for seed in range(5):
            request = ask("hello", structure=structure, temperature=temperature, seed=seed, max_tokens=200)
            pieces, _ = await events_of(model, with_choices(request, 2))
            for index in range(2):
                own = [piece for piece in pieces if piece.index == index]
                if own[-1].reason == "stop":
                    assert has_it("".join(piece.text for piece in own))

    run(main)


def test_an_answer_that_max_tokens_cuts_says_so(model, ask, answer) -> None:
    async def main() -> None:
        found = await answer(model, ask("hello", structure=Structure("regex", "a{40}", "x"), max_tokens=2))
        assert found.finished.reason == "length"
        assert set(found.text) == {"a"}

    run(main)


BAD = {
    "a bias of a token that is none": ({"logit_bias": ((10**6, 1.0),)}, "logit_bias"),
    "a bias over 100": ({"logit_bias": ((1, 200.0),)}, "logit_bias"),
    "a stop token that is none": ({"stop_token_ids": (10**6,)}, "stop_token_ids"),
    "fewest over most": ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    "penalty": ({"frequency_penalty": float("nan")}, "frequency_penalty"),
    "too many logprobs": ({"top_logprobs": 21}, "top_logprobs"),
    "a stop in a structure": ({"structure": STRUCTURES["json"][0], "stop": ("x",)}, "stop"),
    "a structure without an end": ({"structure": STRUCTURES["json"][0], "ignores_eos": True}, "ignore_eos"),
    "a structure that is none": ({"structure": Structure("regex", "[", "guided_regex")}, "guided_regex"),
}


@pytest.mark.parametrize(("sampling", "param"), BAD.values(), ids=BAD.keys())
def test_what_means_nothing_is_refused_by_name_and_leaves_nothing(model, ask, answer, sampling, param) -> None:
    async def main() -> None:
        with pytest.raises(ParameterError) as caught:
            await answer(model, ask("hello", **sampling))
        assert caught.value.param == param
        assert model._admission.num_admitted == 0

    run(main)


def test_more_choices_than_the_cache_ever_holds_are_refused(model, ask) -> None:
    async def main() -> None:
        with pytest.raises(ParameterError, match="n times max_tokens is 4 x 100000") as caught:
            await events_of(model, with_choices(ask("hello", max_tokens=100_000), 4))
        assert caught.value.param == "n"

    run(main)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    from commands.shipped import CHECKPOINTS
    from export.exporter import export_checkpoint

    directory = tmp_path_factory.mktemp("shipped") / "vlm"
    export_checkpoint(str(CHECKPOINTS["vlm"]), directory)
    return directory


SCENE = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "says": {"type": "string", "maxLength": 12},
    },
    "required": ["color", "count", "says"],
    "additionalProperties": False,
}


def test_the_shipped_model_answers_in_every_structure(shipped, pool, answer, ask) -> None:
    model = GenerativeModel(open_bundle(shipped), SETTINGS, pool)
    model.start()

    async def main() -> None:
        for structure, check in (
            (Structure("json", json.dumps(SCENE), "x"), lambda text: jsonschema.validate(json.loads(text), SCENE)),
            (Structure("regex", "(red|blue) (circle|square)", "x"), lambda text: text.index(" ")),
            (Structure("choice", '["a circle", "a square"]', "x"), ["a circle", "a square"].index),
        ):
            found = await answer(model, ask("What is there?", structure=structure, max_tokens=100, model="vlm"))
            assert found.finished.reason == "stop", found.text
            check(found.text)

    try:
        run(main)
    finally:
        model.close()
