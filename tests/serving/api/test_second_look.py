"""The client of docs/second-look.md, as it stands there, against a real server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serving.fake import FakeClient
from serving.protocol import GenerateRequest, ImagePart, TextPart

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "second-look.md"


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    """What the document's first block of Python defines."""
    (code, *_) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(DOCUMENT), "exec"), names)
    return names


def looked(recipe: dict[str, Any], server_url: str, engine: FakeClient, answer: str, image: Image.Image) -> Any:
    import openai

    engine.behaviour.answer = answer
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as client:
        return recipe["second_look"](client, "fake-vlm", image, "What is written?")


def shown(request: GenerateRequest) -> tuple[list[bytes], str]:
    parts = request.messages[0].parts
    images = [part.data for part in parts if isinstance(part, ImagePart)]
    return images, " ".join(part.text for part in parts if isinstance(part, TextPart))


def test_the_named_place_is_shown_enlarged_beside_the_whole(recipe, server_url: str, engine: FakeClient) -> None:
    import io

    image = Image.new("RGB", (200, 100), "white")
    image.paste("red", (80, 40, 120, 60))
    answer, place = looked(recipe, server_url, engine, "[0.4, 0.4, 0.6, 0.6]", image)
    assert (answer, place) == ("[0.4, 0.4, 0.6, 0.6]", (70, 35, 130, 65))
    (first, where), (both, question) = map(shown, engine.generations)
    assert "What is written?" in where
    assert both[0] == first[0]
    closer = Image.open(io.BytesIO(both[1]))
    assert closer.size == (768, 384)
    assert closer.getpixel((384, 192)) == (255, 0, 0)
    assert question == "The second picture is a part of the first, enlarged. What is written?"


@pytest.mark.parametrize(
    "answer", ["I cannot tell.", "[0.5, 0.5, 0.4, 0.9]", "[10, 20, 50, 60]", "0.1 0.2", "[0, 0, 0, 0]"]
)
def test_without_a_place_the_question_is_asked_plainly(recipe, server_url: str, engine, answer: str) -> None:
    found = looked(recipe, server_url, engine, answer, Image.new("L", (20, 10)))
    assert found == (answer, None)
    images, question = shown(engine.generations[-1])
    assert (len(images), question) == (1, "What is written?")


def test_a_place_keeps_to_the_image(recipe) -> None:
    assert recipe["region"]("0 0 1 1", (30, 20)) == (0, 0, 30, 20)
    assert recipe["region"]("0.9, 0.9, 1.0, 1.0", (10, 10)) == (9, 9, 10, 10)
    assert recipe["region"]("0.001 0.001 0.002 0.002", (10, 10)) is None
