"""Every block of docs/clients.md, run as it stands against a server over a fake engine."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from serving.fake import EMBEDDING_SIZE, FAKE_CLIP, FAKE_VLM, FakeClient
from serving.protocol import ImagePart
from serving.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTED = "http://127.0.0.1:8000"
CLIENTS = ("openai", "anthropic", "langchain_openai", "litellm", "llama_index")
SAID = "1 images. What color is the star?"


@dataclass(frozen=True)
class Block:
    """A block of the page.

    Attributes:
        section: That it stands in, and its place there.
        language: As the fence says.
        text: What is run.
    """

    section: str
    language: str
    text: str

    @property
    def client(self) -> str | None:
        """The package that it needs, where it is Python."""
        imported = re.findall(r"^(?:from|import) (\w+)", self.text, re.MULTILINE)
        return next((name for name in imported if name in CLIENTS), None)


def blocks() -> list[Block]:
    found = []
    for section in re.split(r"^## ", (ROOT / "docs" / "clients.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[
        1:
    ]:
        fences = re.findall(r"^```(\w+)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        title = section.partition("\n")[0]
        found += [Block(f"{title} {place}", *fence) for place, fence in enumerate(fences, 1)]
    return found


BLOCKS = {block.section: block for block in blocks()}


@pytest.fixture(scope="module")
def engine() -> FakeClient:
    """It answers under the names of the shipped models."""
    return FakeClient((replace(FAKE_VLM, name="pocketvlm-vlm-wide"), replace(FAKE_CLIP, name="pocketvlm-clip")))


@pytest.fixture(scope="module")
def server_url(edge_servers: Any, engine: FakeClient) -> Iterator[str]:
    with edge_servers(engine, ServerSettings()) as url:
        yield url


def run(section: str, url: str, python: str = sys.executable) -> str:
    """Return what a block prints; skips where what it needs is not installed."""
    block = BLOCKS[section]
    text = block.text.replace(DOCUMENTED, url)
    if block.language == "python":
        if python == sys.executable and block.client and importlib.util.find_spec(block.client) is None:
            pytest.skip(f"{block.client} is not installed")
        command = [python, "-c", text]
    elif block.language == "javascript":
        node = shutil.which("node")
        known = node and subprocess.run([node, "-e", "require.resolve('openai')"], capture_output=True, check=False)
        if not known or known.returncode:
            pytest.skip("node or its package openai is not installed")
        command = [str(node), "--input-type=module", "-e", text]
    else:
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        command = ["bash", "-euo", "pipefail", "-c", text]
    # LiteLLM asks GitHub for a list of prices when it is imported, unless it is told not to.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("section", "printed"),
    [
        ("openai, Python 1", SAID),
        ("openai, Python 2", f"{SAID}\n4 of 4 image tokens were read\n"),
        ("openai, Python 3", f"{EMBEDDING_SIZE}\n"),
        ("openai, JavaScript 1", SAID),
        ("anthropic 1", f"{SAID}\n"),
        ("LangChain 1", f"{SAID}\n{EMBEDDING_SIZE}\n"),
        ("LiteLLM 1", f"{SAID}\n"),
    ],
)
def test_a_block_prints_the_answer(section: str, printed: str, server_url: str) -> None:
    assert run(section, server_url) == printed


def test_llama_index_prints_the_answer(llama_index_python: str, server_url: str) -> None:
    assert run("llama-index 1", server_url, llama_index_python) == f"{SAID}\n{EMBEDDING_SIZE}\n"


def test_curl_asks_about_an_image(server_url: str, engine: FakeClient) -> None:
    assert json.loads(run("curl 1", server_url))["choices"][0]["message"]["content"] == SAID
    image = ImagePart((ROOT / "reference" / "samples" / "scene.png").read_bytes())
    assert engine.generations[-1].messages[0].parts[0] == image


def test_curl_classifies_two_images(server_url: str) -> None:
    answered = json.loads(run("curl 2", server_url))["data"]
    assert [{each["label"] for each in item["labels"]} for item in answered] == [{"a circle", "a square", "a star"}] * 2


def test_every_block_is_run() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in BLOCKS if f'"{name}"' not in source] == []
    assert {block.client for block in BLOCKS.values() if block.language == "python"} == set(CLIENTS)
