"""A stored prefix through a whole model: its rows are found, and the answer is that of plain demonstrations."""

import asyncio
import base64
from pathlib import Path

import httpx

from serving.api.app import create_app
from serving.models.client import LocalClient
from serving.settings import ApiSettings, EngineSettings

SETTINGS = EngineSettings(max_sequences=2, intra_threads=1, prefill_chunk_tokens=32)


def test_answers_behind_a_prefix_are_those_of_plain_demonstrations(smolvlm_bundle, image_bytes, tmp_path: Path) -> None:
    def image(seed: int) -> dict:
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_encoded(image_bytes(seed))}"}}

    shots = []
    for seed in (1, 2):
        shots += [
            {"role": "user", "content": [image(seed), {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": f"noise of seed {seed}"},
        ]
    own = {"role": "user", "content": [image(3), {"type": "text", "text": "What is it?"}]}
    body = {"model": "tiny-smolvlm", "max_tokens": 8, "temperature": 0, "ignore_eos": True, "logprobs": True}

    async def asked(*posts: tuple[str, dict]) -> list[dict]:
        async with LocalClient([smolvlm_bundle], SETTINGS) as client:
            app = create_app(client, ApiSettings(prefix_folder=tmp_path))
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
                answers = [await http.post(path, json=sent) for path, sent in posts]
        assert [answer.status_code for answer in answers] == [200] * len(posts), answers[-1].text
        return [answer.json() for answer in answers]

    async def main() -> None:
        made = {"name": "two-shot", "model": "tiny-smolvlm", "messages": shots}
        chat, named = "/v1/chat/completions", {**body, "prefix": "two-shot", "messages": [own]}
        told, warm = await asked(("/v1/prefixes", made), (chat, named))
        (cold,) = await asked((chat, named))  # another process: the folder alone is there
        (plain,) = await asked((chat, {**body, "messages": [*shots, own]}))
        assert plain["choices"] == cold["choices"] == warm["choices"]
        counts = [answer["usage"]["prompt_tokens_details"] for answer in (warm, cold)]
        # what opens an answer is the prefix's alone, and a hit ends at a multiple of 16 tokens
        assert told["prompt_tokens"] - 32 < counts[0]["cached_tokens"] <= told["prompt_tokens"]
        assert counts[1]["cached_tokens"] == 0
        assert told["image_tokens"] == counts[0]["cached_image_tokens"] > 0

        fused, again = {**made, "name": "fused", "method": "fused"}, {**named, "prefix": "fused"}
        told, warm = await asked(("/v1/prefixes", fused), (chat, again))
        (cold,) = await asked((chat, again))
        assert cold["choices"] == warm["choices"]
        [counts, of_plain] = [answer["usage"]["prompt_tokens_details"] for answer in (cold, plain)]
        # the rows of its text are there, after a restart as well, and its images are nowhere
        assert counts["cached_tokens"] == told["cache_rows"] == told["prompt_tokens"] - told["image_tokens"]
        assert counts["cached_image_tokens"] == 0
        assert counts["image_tokens"] * 3 == of_plain["image_tokens"]
        assert plain["usage"]["prompt_tokens"] - cold["usage"]["prompt_tokens"] == told["image_tokens"]

    asyncio.run(asyncio.wait_for(main(), 120))


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()
