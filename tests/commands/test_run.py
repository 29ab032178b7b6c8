"""`pocketvlm run` on tiny bundles."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import serving.oneshot
from bundle.directory import MANIFEST, read_manifest
from bundle.manifest import Gate
from commands.terminal import Stripped


@pytest.fixture(scope="module")
def failed_bundle(smolvlm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that missed one of two gates."""
    folder = tmp_path_factory.mktemp("failed") / "tiny"
    shutil.copytree(smolvlm_bundle, folder)
    gates = (
        Gate(name="kl_mean", value=0.375, limit=0.1, direction="max", n=48, passed=False),
        Gate(name="clear_agreement", value=0.9875, limit=0.9, direction="min", n=48, passed=True),
    )
    manifest = read_manifest(folder).model_copy(update={"gates": gates})
    (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


def test_as_json_it_reports_text_tokens_usage_and_timings(process, smolvlm_bundle: Path, image: Path) -> None:
    done = process("run", smolvlm_bundle, "--image", image, "--max-tokens", 5, "--json", "what?")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["token_ids"]) == answer["usage"]["completion_tokens"] <= 5
    assert answer["usage"]["image_tokens"] > 0
    assert 0 < answer["timings"]["first_token_s"] <= answer["timings"]["total_s"]


def test_the_text_goes_to_stdout_and_its_speed_to_stderr(pocketvlm, smolvlm_bundle: Path) -> None:
    words = pocketvlm("run", smolvlm_bundle, "--max-tokens", 5, "what?")
    assert words.returncode == 0, words.stderr
    answer = json.loads(pocketvlm("run", smolvlm_bundle, "--max-tokens", 5, "--json", "what?").stdout)
    assert words.stdout == answer["text"].strip() + "\n"
    assert "first token" in words.stderr


def test_it_reads_fewer_image_tokens_where_it_is_told(pocketvlm, smolvlm_bundle: Path, image: Path) -> None:
    options = ("--vision-method", "pooling", "--vision-keep", "0.5", "--max-tokens", 1, "what?")
    done = pocketvlm("run", smolvlm_bundle, "--image", image, "--json", *options)
    assert done.returncode == 0, done.stderr
    usage = json.loads(done.stdout)["usage"]
    assert usage["kept_image_tokens"] * 2 == usage["image_tokens"] > 0
    words = pocketvlm("run", smolvlm_bundle, "--image", image, *options)
    assert f"({usage['kept_image_tokens']} of images that have {usage['image_tokens']})" in words.stderr


def test_it_tells_how_many_rows_of_the_prompt_stay(pocketvlm, smolvlm_bundle: Path) -> None:
    options = ("--kv-policy", "uniform", "--kv-budget", "0.5", "--max-tokens", 2, "what?")
    done = pocketvlm("run", smolvlm_bundle, "--json", *options)
    assert done.returncode == 0, done.stderr
    stayed = json.loads(done.stdout)["usage"]["prompt_tokens"] // 2
    assert f", of which {stayed} stay in the cache" in pocketvlm("run", smolvlm_bundle, *options).stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--vision-method", "magic", "--vision-keep", "0.5"), "it must be one of random, uniform"),
        (("--vision-method", "dart"), "reads all tokens without --vision-keep"),
        (("--vision-keep", "1.5"), "above 0 and at most 1"),
        (("--kv-policy", "best", "--kv-budget", "0.5"), "it must be one of random, uniform"),
        (("--kv-policy", "knorm"), "keeps all rows without --kv-budget"),
        (("--kv-budget", "1.5"), "above 0 and at most 1"),
        (("--kv-policy", "vl-cache", "--kv-budget", "0.5"), "--length-groups"),
    ],
)
def test_a_reduction_that_cannot_be_is_a_wrong_command_line(
    pocketvlm, smolvlm_bundle: Path, image: Path, options: tuple[str, ...], told: str
) -> None:
    done = pocketvlm("run", smolvlm_bundle, "--image", image, *options, "what?")
    assert done.returncode == 2
    assert told in " ".join(done.stderr.replace("│", " ").split())


def test_rows_go_where_it_is_told(pocketvlm, smolvlm_bundle: Path, image: Path) -> None:
    options = ("--kv-policy", "look-m", "--kv-budget", "0.25", "--max-tokens", 4, "--json", "what?")
    done = pocketvlm("run", smolvlm_bundle, "--image", image, *options)
    assert done.returncode == 0, done.stderr
    usage = json.loads(done.stdout)["usage"]
    assert usage["cache_rows_before"] // 4 == usage["cache_rows_after"] > 0


def test_a_share_of_no_images_is_a_wrong_command_line(pocketvlm, smolvlm_bundle: Path) -> None:
    done = pocketvlm("run", smolvlm_bundle, "--vision-keep", "0.5", "what?")
    assert done.returncode == 2
    assert "there is none" in " ".join(done.stderr.replace("│", " ").split())


def test_it_takes_several_images(pocketvlm, smolvlm_bundle: Path, image: Path) -> None:
    counts = []
    for images in (["--image", image], ["--image", image, "--image", image]):
        done = pocketvlm("run", smolvlm_bundle, *images, "--max-tokens", 1, "--json", "what?")
        assert done.returncode == 0, done.stderr
        counts.append(json.loads(done.stdout)["usage"]["image_tokens"])
    assert counts[1] == 2 * counts[0] > 0


def test_a_bundle_that_failed_its_gate_says_so_in_one_line_and_answers(
    pocketvlm, failed_bundle: Path, smolvlm_bundle: Path
) -> None:
    done = pocketvlm("run", failed_bundle, "--max-tokens", 3, "what?")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "gate" in line)
    assert "kl_mean 0.375 on 48, needs <= 0.1" in line
    assert "clear_agreement" not in line
    assert done.stdout == pocketvlm("run", smolvlm_bundle, "--max-tokens", 3, "what?").stdout


def test_a_failed_gate_adds_nothing_to_stdout(pocketvlm, failed_bundle: Path) -> None:
    done = pocketvlm("run", failed_bundle, "--max-tokens", 1, "--json", "what?")
    assert set(json.loads(done.stdout)) == {"text", "token_ids", "finish_reason", "usage", "timings"}
    assert "kl_mean 0.375" in done.stderr


def test_a_bundle_that_failed_no_gate_says_nothing_of_gates(pocketvlm, smolvlm_bundle: Path) -> None:
    assert "gate" not in pocketvlm("run", smolvlm_bundle, "--max-tokens", 1, "what?").stderr


def test_a_question_may_come_on_standard_input(process, smolvlm_bundle: Path) -> None:
    said = process("run", smolvlm_bundle, "--max-tokens", 3, "--json", "what?")
    read = process("run", smolvlm_bundle, "--max-tokens", 3, "--json", "-", stdin="what?\n")
    assert read.returncode == 0, read.stderr
    assert json.loads(read.stdout)["token_ids"] == json.loads(said.stdout)["token_ids"]
    assert process("run", smolvlm_bundle, "-").returncode == 2


def test_an_answer_without_words_is_told_on_stderr(pocketvlm, smolvlm_bundle: Path, monkeypatch) -> None:
    answer = serving.oneshot.answer

    async def blank(*arguments: object) -> serving.oneshot.Answer:
        return replace(await answer(*arguments[:-1], None), text=" \n")

    monkeypatch.setattr(serving.oneshot, "answer", blank)
    done = pocketvlm("run", smolvlm_bundle, "--max-tokens", 1, "what?")
    assert done.stdout == "\n"
    assert "the answer is empty" in done.stderr


@given(st.lists(st.text(" \n\tab", max_size=4)))
def test_pieces_are_written_without_the_blanks_around_their_text(pieces: list[str]) -> None:
    written = io.StringIO()
    with redirect_stdout(written):
        write = Stripped()
        for piece in pieces:
            write(piece)
    assert written.getvalue() == "".join(pieces).strip()
