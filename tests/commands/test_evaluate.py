"""`pocketvlm evaluate` on tiny bundles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Write rows beside three images."""
    for name in ("red", "blue", "green"):
        Image.new("RGB", (40, 30), name).save(tmp_path / f"{name}.png")

    def write(*rows: dict[str, object]) -> Path:
        path = tmp_path / "samples.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


ASKED = {"image": "red.png", "question": "Which colour?", "answer": "red"}


def test_a_bundle_is_asked_and_its_replies_are_marked(pocketvlm, smolvlm_bundle: Path, file, tmp_path: Path) -> None:
    rows = [
        {**ASKED, "task": "colour"},
        {**ASKED, "image": ["red.png", "blue.png"]},
        {"question": "Hm?", "answer": "x"},
    ]
    output = tmp_path / "out" / "page.html"
    options = ("--max-tokens", 3, "--threads", 1, "-o", output)
    done = pocketvlm("evaluate", smolvlm_bundle, file(*rows), *options, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["model"], report["format"], report["num_samples"]) == ("tiny-smolvlm", "vqa", 3)
    assert report["tasks"]["all"]["exact"]["n"] == 3
    assert report == json.loads(output.with_suffix(".json").read_text())
    assert "<h1>tiny-smolvlm on samples.jsonl</h1>" in output.read_text()
    said = [json.loads(line) for line in output.with_name("page.replies.jsonl").read_text().splitlines()[1:]]
    (answer,) = (
        json.loads(pocketvlm("run", smolvlm_bundle, "--json", "--max-tokens", 3, "--temperature", 0, "Hm?").stdout),
    )
    assert next(reply["text"] for reply in said if reply["number"] == 3) == answer["text"]
    again = pocketvlm("evaluate", smolvlm_bundle, file(*rows), *options)
    assert "3 of 3 replies are in" in again.stderr
    cheaper = pocketvlm("evaluate", smolvlm_bundle, file(*rows), *options, "--vision-keep", "0.5")
    assert cheaper.returncode == 1
    assert "vision_keep was None and is 0.5" in cheaper.stderr
    options = (
        *options,
        "--overwrite",
        "--vision-keep",
        "0.5",
        "--kv-policy",
        "knorm",
        "--kv-budget",
        "0.5",
        "--limit",
        2,
    )
    report = json.loads(pocketvlm("evaluate", smolvlm_bundle, file(*rows), *options, "--json").stdout)
    assert (report["options"]["vision_method"], report["options"]["kv_policy"]) == ("uniform", "knorm")
    assert (report["num_samples"], report["num_rows"]) == (2, 3)


def test_a_dual_encoder_searches_and_classifies(pocketvlm, clip_bundle: Path, file, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    rows = [{"image": f"{name}.png", "caption": name} for name in ("red", "blue", "green")]
    done = pocketvlm("evaluate", clip_bundle, file(*rows), "-o", output)
    assert done.returncode == 0, done.stderr
    assert "image to text" in done.stdout
    rows = [{"image": f"{name}.png", "label": name} for name in ("red", "blue", "green")]
    done = pocketvlm(
        "evaluate", clip_bundle, file(*rows), "-o", output, "--template", "{}", "--template", "a {}", "--json"
    )
    assert json.loads(done.stdout)["tasks"]["all"]["top-5"]["mean"] == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--vision-keep", "0.5", "--vision-method", "magic"), "it must be one of random, uniform"),
        (("--name", "x"), "only an endpoint's model is named"),
        (("--kv-policy", "knorm"), "keeps all rows without --kv-budget"),
    ],
)
def test_a_wrong_command_line_is_told(
    pocketvlm, smolvlm_bundle: Path, file, tmp_path: Path, options, told: str
) -> None:
    done = pocketvlm("evaluate", smolvlm_bundle, file(ASKED), "-o", tmp_path / "page.html", *options)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.replace("│", " ").split())


def test_reductions_are_not_for_endpoints(pocketvlm, file) -> None:
    done = pocketvlm("evaluate", "http://127.0.0.1:1", file(ASKED), "--kv-budget", "0.5")
    assert done.returncode == 2
    done = pocketvlm("evaluate", "http://127.0.0.1:1", file(ASKED))
    assert done.returncode == 1
    assert "http://127.0.0.1:1/v1/models cannot be reached" in done.stderr


def test_a_bad_file_is_told_with_its_line(pocketvlm, smolvlm_bundle: Path, file) -> None:
    done = pocketvlm("evaluate", smolvlm_bundle, file(ASKED, {**ASKED, "image": "gone.png"}))
    assert done.returncode == 1
    assert "samples.jsonl, line 2" in done.stderr
