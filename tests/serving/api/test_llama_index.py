"""llama-index's client of OpenAI's API, unchanged, against a real socket, from an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from serving.fake import EMBEDDING_SIZE, FakeClient

SESSION = Path(__file__).with_name("llama_index_session.py")
SAID = "1 images. what is it"


def test_llama_index_chats_calls_and_embeds(
    llama_index_python: str, server_url: str, engine: FakeClient, png: bytes, tmp_path: Path
) -> None:
    image = tmp_path / "red.png"
    image.write_bytes(png)
    done = subprocess.run([llama_index_python, SESSION, server_url, image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "whole": SAID,
        "streamed": SAID,
        "asynchronous": SAID,
        "a later turn": "1 images. and now",
        "a bare text": "0 images. one two",
        "structured": {"city": "x"},
        "call": ["weather", {"city": "x"}],
        "behind its result": "0 images. 7 degrees in x",
        "vectors": [EMBEDDING_SIZE] * 2,
    }
    assert engine.generations[-1].messages[-1].role == "tool"
