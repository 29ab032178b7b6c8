"""`pocketvlm index`, `search` and `ask` with the shipped models, on held-out scenes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands.shipped import CHECKPOINTS
from export.exporter import export_checkpoint

pytest.importorskip("faiss", reason="faiss is not installed here")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("shipped")
    for name, checkpoint in CHECKPOINTS.items():
        export_checkpoint(checkpoint, folder / name, name=name)
    return {name: folder / name for name in CHECKPOINTS}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Caption -> image file, of held-out scenes."""
    from reference.held_out import evaluation_of

    folder = tmp_path_factory.mktemp("scenes")
    found = {}
    for number, each in enumerate(list(evaluation_of("clip", 4).captions)[:24]):
        each.image.save(folder / f"{number}.png")
        found[each.caption] = f"{number}.png"
    found["folder"] = str(folder)
    return found


def test_a_folder_is_indexed_searched_and_asked_with_citations(pocketvlm, shipped, scenes, tmp_path: Path) -> None:
    index, folder = tmp_path / "index", scenes["folder"]
    made = json.loads(pocketvlm("index", folder, "-o", index, "--model", shipped["clip"], "--json").stdout)
    assert (made["images"], made["embedded"]) == (24, 24)
    assert "24 as they were" in pocketvlm("index", folder, "-o", index, "--model", shipped["clip"]).stdout
    captions = [caption for caption in scenes if caption != "folder"]
    firsts = [json.loads(pocketvlm("search", index, each, "-k", 1, "--json").stdout)[0] for each in captions[:3]]
    assert sum(first["image"] == scenes[each] for each, first in zip(captions, firsts, strict=False)) >= 2
    table = pocketvlm("search", index, "--image", Path(folder) / "3.png", "-k", 2, "--rerank", shipped["clip"])
    assert "3.png" in table.stdout
    assert "1.000" in table.stdout
    asking = ("ask", index, "Describe the image.", "--query", captions[0], "--model", shipped["vlm"], "-k", 1)
    asked = pocketvlm(*asking, "--each", "--json")
    (answer,) = json.loads(asked.stdout)["answers"]
    assert answer["citations"][0]["image"] == firsts[0]["image"]
    shape = captions[0].split()[-1]
    assert shape in answer["answer"]
    together = pocketvlm(*asking)
    assert "the answer names no image; it was shown [1]" in together.stderr


def test_what_cannot_be_is_told(pocketvlm, shipped, scenes, smolvlm_bundle, clip_bundle, tmp_path: Path) -> None:
    index = tmp_path / "index"
    assert pocketvlm("index", scenes["folder"], "-o", index, "--model", clip_bundle).returncode == 0
    other = pocketvlm("search", index, "red", "--encoder", shipped["clip"])
    assert other.returncode == 2
    assert "cannot be compared" in " ".join(other.stderr.replace("│", " ").split())
    assert "makes no vectors" in pocketvlm("index", scenes["folder"], "-o", index, "--model", smolvlm_bundle).stderr
    assert "give either a QUERY or --image" in pocketvlm("search", index).stderr
    assert pocketvlm("search", tmp_path, "red").returncode == 2
