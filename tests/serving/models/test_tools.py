"""Functions offered to a real model: what it has to call, it calls with arguments of the schema."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import jsonschema
import pytest

from bundle.directory import open_bundle
from bundle.errors import ParameterError
from serving.models.generative import GenerativeModel
from serving.protocol import GenerateRequest, Structure, Tool
from serving.settings import EngineSettings

SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture
def model(smolvlm_bundle, pool):
    settings = EngineSettings(max_sequences=3, intra_threads=1)
    model = GenerativeModel(open_bundle(smolvlm_bundle), settings, pool)
    model.start()
    yield model
    model.close()


def offering(
    request: GenerateRequest, schema: dict[str, Any] = SCHEMA, *, is_required: bool = True, is_optional: bool = False
) -> GenerateRequest:
    text = json.dumps({"tools": [{"name": "f", "parameters": schema}], "most": 1, "is_required": is_required})
    sampling = dataclasses.replace(request.sampling, structure=Structure("tools", text, "tools", is_optional))
    return dataclasses.replace(request, tools=(Tool("f", "", json.dumps(schema)),), sampling=sampling)


def test_required_call_has_arguments_of_its_schema(model, ask, answer) -> None:
    async def main() -> None:
        for seed in range(3):
            said = await answer(model, offering(ask("hello", seed=seed, temperature=1.0, max_tokens=90)))
            assert said.finished.reason == "stop"
            start, end = '<tool_call>{"name": "f", "arguments": ', "}</tool_call>"
            body = said.text.replace("\n", "").replace("[{", "{").replace("}]", "}")
            assert body.startswith(start)
            assert body.endswith(end)
            jsonschema.validate(json.loads(body.removeprefix(start).removesuffix(end)), SCHEMA)

    asyncio.run(main())


def test_prompt_tells_of_the_functions(model, ask, answer) -> None:
    async def main() -> None:
        plain = await answer(model, ask("hello", max_tokens=1))
        told = await answer(model, offering(ask("hello", max_tokens=1)))
        assert told.finished.usage.prompt_tokens > plain.finished.usage.prompt_tokens + 20

    asyncio.run(main())


def test_free_answer_that_is_held_has_no_control_tokens_and_may_be_anything_else(model, ask, answer) -> None:
    async def main() -> None:
        request = offering(ask("hello", max_tokens=20), is_required=False, is_optional=True)
        free = dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, structure=None))
        held, own = await answer(model, request), await answer(model, free)
        special = {token.id for token in model._prompts.tokenizer.added_tokens if token.is_special}
        assert special & set(own.token_ids)  # a random model writes them
        assert not special & set(held.token_ids)
        assert held.token_ids[0] == own.token_ids[0]

    asyncio.run(main())


def test_schema_that_cannot_be_followed_is_left_to_the_model_only_where_that_is_allowed(model, ask, answer) -> None:
    async def main() -> None:
        unbuilt = {"type": "object", "not": {}}
        said = await answer(model, offering(ask("hello", max_tokens=3), unbuilt, is_required=False, is_optional=True))
        assert len(said.token_ids) == 3
        with pytest.raises(ParameterError):
            await answer(model, offering(ask("hello", max_tokens=3), unbuilt, is_required=False))

    asyncio.run(main())


def test_answer_that_may_call_is_a_call_or_follows_its_format(model, ask, answer) -> None:
    async def main() -> None:
        for seed in range(3):
            request = offering(ask("hello", seed=seed, temperature=1.0, max_tokens=90), is_required=False)
            asked = json.loads(request.sampling.structure.text) | {
                "answer": {"kind": "json", "text": json.dumps(SCHEMA)}
            }
            structure = Structure("tools", json.dumps(asked), "response_format")
            held = dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, structure=structure))
            said = (await answer(model, held)).text
            start, end = '{"name": "f", "arguments": ', "}</tool_call>"
            if said.startswith("<tool_call>"):
                said = said.replace("\n", "").replace("[{", "{").replace("}]", "}").removeprefix("<tool_call>")
                assert said.startswith(start)
                said = said.removeprefix(start).removesuffix(end)
            jsonschema.validate(json.loads(said), SCHEMA)

    asyncio.run(main())
