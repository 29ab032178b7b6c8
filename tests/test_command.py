"""The command line as a user meets it: real processes, real bundles, one-line errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def pocketvlm(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pocketvlm", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "red.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return path


@pytest.mark.parametrize(
    "command",
    [
        "export",
        "quantize",
        "inspect",
        "report",
        "run",
        "embed",
        "serve",
        "deploy",
        "bench",
        "loadtest",
        "doctor",
        "demo",
    ],
)
def test_every_command_explains_itself(command: str) -> None:
    done = pocketvlm(command, "--help")
    assert done.returncode == 0
    assert "--help" in done.stdout


def test_run_as_json_reports_text_tokens_usage_and_timings(smolvlm_bundle: Path, image: Path) -> None:
    done = pocketvlm("run", smolvlm_bundle, "--image", image, "--max-tokens", 5, "--json", "what?")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["token_ids"]) == answer["usage"]["completion_tokens"] <= 5
    assert answer["usage"]["image_tokens"] > 0
    assert 0 < answer["timings"]["first_token_s"] <= answer["timings"]["total_s"]


def test_run_takes_several_images(smolvlm_bundle: Path, image: Path) -> None:
    counts = []
    for images in (["--image", image], ["--image", image, "--image", image]):
        done = pocketvlm("run", smolvlm_bundle, *images, "--max-tokens", 1, "--json", "what?")
        assert done.returncode == 0, done.stderr
        counts.append(json.loads(done.stdout)["usage"]["image_tokens"])
    assert counts[1] == 2 * counts[0] > 0


def test_embed_gives_unit_vectors_for_images_and_texts(clip_bundle: Path, image: Path) -> None:
    done = pocketvlm("embed", clip_bundle, "--image", image, "--text", "red", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["embeddings"]
    assert len(rows) == 2
    for row in rows:
        assert sum(value * value for value in row) == pytest.approx(1.0, abs=1e-5)


def test_inspect_as_json_is_the_manifest(smolvlm_bundle: Path) -> None:
    done = pocketvlm("inspect", smolvlm_bundle, "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["components"]) == {"vision_encoder", "embed_tokens", "decoder"}


def test_doctor_as_json_says_whether_this_machine_serves() -> None:
    done = pocketvlm("doctor", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["can_serve"] is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "nowhere/at-all/here", "-o", "{out}"], "nowhere/at-all/here"),
        (["inspect", "{out}"], "is not a bundle"),
        (["run", "{vlm}", "--image", "absent.png", "hi"], "absent.png"),
        (["run", "{clip}", "hi"], "dual-encoder"),
        (["embed", "{vlm}", "--text", "hi"], "image-text-to-text"),
        (["quantize", "{vlm}", "-o", "{out}", "--weights", "int3"], "int3"),
        (["serve", "{out}"], "is not a bundle"),
        (["loadtest", "http://192.0.2.1:8000"], "--allow-remote"),
    ],
)
def test_a_mistake_is_one_line_naming_it(
    arguments: list[str], words: str, tmp_path: Path, smolvlm_bundle: Path, clip_bundle: Path
) -> None:
    names = {"out": tmp_path / "out", "vlm": smolvlm_bundle, "clip": clip_bundle}
    done = pocketvlm(*(argument.format(**names) for argument in arguments))
    assert done.returncode == 1
    assert sum(line.startswith("error:") for line in done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert words in done.stderr


def test_a_wrong_command_line_is_exit_code_two() -> None:
    assert pocketvlm("run").returncode == 2
    assert pocketvlm("export", "x", "-o", "y", "--dialect", "french").returncode == 2


def test_an_existing_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path, clip_bundle: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    done = pocketvlm("quantize", clip_bundle, "-o", tmp_path, "--weights", "int8", "--overwrite")
    assert done.returncode == 1
    assert (tmp_path / "precious.txt").read_text() == "keep me"


def test_a_variant_without_a_measured_quality_is_inspected_but_not_served(clip_bundle: Path, tmp_path: Path) -> None:
    variant = tmp_path / "int8"
    made = pocketvlm("quantize", clip_bundle, "-o", variant, "--weights", "int8", "--no-evaluate", "--no-tune")
    assert made.returncode == 0, made.stderr
    assert "never measured on samples" in pocketvlm("inspect", variant).stdout
    served = pocketvlm("serve", variant, "--port", 0)
    assert served.returncode == 1
    assert "was never measured on samples" in served.stderr
    assert "--allow-ungated" in served.stderr


def test_a_report_needs_a_variant_to_compare(clip_bundle: Path, tmp_path: Path) -> None:
    done = pocketvlm("report", clip_bundle, "-o", tmp_path / "page.html")
    assert done.returncode == 1
    assert "Add a quantized variant" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_square_brackets_in_a_message_are_printed_as_they_are() -> None:
    done = pocketvlm("inspect", "x[/red][quant]")
    assert done.returncode == 1
    assert "x[/red][quant] is not a bundle" in done.stderr
