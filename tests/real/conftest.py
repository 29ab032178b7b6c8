"""The real decoder: its file, a checkpoint around it, and bundles of both ways to export it; made once, then deleted.

Skipped where the file can neither be found nor fetched; a file that is another one fails.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from bundle.errors import MachineError
from bundle.machine import cache_folder
from commands.real import VISION
from export.checkpoint import Checkpoint
from export.exporter import export_checkpoint
from export.kept_bundle import export_kept
from reference.real import wheel
from reference.real.checkpoint import build_checkpoint

GGUF_ROWS = 49_152
"""Of the file's token table."""
RESERVED = {"image_token": "<jupyter_text>", "fake_image_token": "<file_sep>", "global_image_token": "<filename>"}
"""Tokens of the decoder's own vocabulary that a chat never uses, as names of images: a table of the file's own rows."""


@pytest.fixture(scope="session")
def gguf_file() -> Path:
    try:
        return wheel.real_gguf(cache_folder() / "real")
    except MachineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that does not outlive the session: what goes there takes two gigabytes."""
    folder = tmp_path_factory.mktemp("real")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def checkpoint(gguf_file: Path, scratch: Path) -> Path:
    build_checkpoint(gguf_file, scratch / "checkpoint", VISION)
    return scratch / "checkpoint"


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, scratch: Path) -> Path:
    """Exported through the checkpoint's weights, with the shipped tower and connector."""
    export_checkpoint(checkpoint, scratch / "bundle")
    return scratch / "bundle"


@pytest.fixture(scope="session")
def bare_checkpoint(checkpoint: Path, scratch: Path) -> Path:
    """The same without a decoder, and with as many tokens as the file: what `decoder_gguf` completes."""
    folder = scratch / "bare"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    tensors = Checkpoint.open(checkpoint).tensors
    kept = {name: tensor.read() for name, tensor in tensors.items() if "text_model" not in name}
    save_file(kept, folder / "model.safetensors")
    config = json.loads((checkpoint / "config.json").read_text())
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    config["text_config"]["vocab_size"] = GGUF_ROWS
    config["image_token_id"] = tokenizer["model"]["vocab"][RESERVED["image_token"]]
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < GGUF_ROWS]
    write(folder / "config.json", config)
    write(folder / "tokenizer.json", tokenizer)
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    write(folder / "tokenizer_config.json", {**settings, **RESERVED, "extra_special_tokens": []})
    template = (checkpoint / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("<image>", RESERVED["image_token"]))
    return folder


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def gguf_bundle(bare_checkpoint: Path, gguf_file: Path, scratch: Path) -> Path:
    """Exported through the file's weights."""
    export_checkpoint(bare_checkpoint, scratch / "gguf-bundle", decoder_gguf=gguf_file)
    return scratch / "gguf-bundle"


@pytest.fixture(scope="session")
def kept_bundle(bare_checkpoint: Path, gguf_file: Path, scratch: Path) -> Path:
    """Of the file's own blocks; not measured."""
    export_kept(bare_checkpoint, scratch / "kept-bundle", gguf_file)
    return scratch / "kept-bundle"
