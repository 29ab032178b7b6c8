"""`pocketvlm doctor` on this machine."""

from __future__ import annotations

import json

import pytest

import serving.doctor


def test_as_json_it_says_whether_this_machine_serves(pocketvlm) -> None:
    done = pocketvlm("doctor", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["can_serve"] is True


def test_a_machine_that_cannot_serve_is_exit_code_one(pocketvlm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.doctor, "failure_of", lambda probe, provider: "absent")
    done = pocketvlm("doctor")
    assert done.returncode == 1
    assert "absent" in done.stdout


def test_what_is_not_installed_comes_with_what_installs_it(pocketvlm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.doctor, "find_spec", lambda module: None if module == "locust" else module)
    lines = [line for line in pocketvlm("doctor").stdout.splitlines() if line.startswith("not installed")]
    assert [line.split(maxsplit=3)[2:] for line in lines] == [
        ["loadtests", "pip install -e '.[loadtests]' in a checkout of PocketVLM"]
    ]


def test_it_says_what_a_tensorrt_makes_of_each_graph(pocketvlm, bundle_of) -> None:
    done = pocketvlm("doctor", "--tensorrt", "10.3", bundle_of("clip", "portable"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name: verdict["form"] for name, verdict in found.items()} == {
        "vision_encoder": "plain",
        "text_encoder": "plain",
    }
    told = pocketvlm("doctor", "--tensorrt", "11", bundle_of("clip", "portable")).stdout.splitlines()
    assert told == ["vision_encoder: taken as it is", "text_encoder: taken as it is"]


def test_a_bundle_that_no_tensorrt_reads_is_exit_code_one(pocketvlm, clip_bundle) -> None:
    done = pocketvlm("doctor", "--tensorrt", "11", clip_bundle)
    assert done.returncode == 1
    assert "--dialect portable" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tensorrt", "10.3"],
        ["--device-memory", "6GiB"],
        ["--max-sequences", "3"],
        ["--context-tokens", "64"],
        ["--provider", "cpu"],
        ["--tensorrt", "10.3", "--max-sequences", "3", "{bundle}"],
        ["--tensorrt", "eleven", "{bundle}"],
        ["--device-memory", "much", "{bundle}"],
        ["--device-memory", "0", "{bundle}"],
    ],
)
def test_half_a_question_is_a_wrong_command_line(pocketvlm, clip_bundle, arguments: list[str]) -> None:
    done = pocketvlm("doctor", *(argument.format(bundle=clip_bundle) for argument in arguments))
    assert done.returncode == 2


def test_a_bundle_is_held_against_a_memory_and_misses_it_with_exit_code_one(pocketvlm, clip_bundle) -> None:
    done = pocketvlm("doctor", clip_bundle, "--device-memory", "8GiB")
    assert done.returncode == 0, done.stderr
    assert "8,192 MiB of memory for it" in done.stdout
    missed = pocketvlm("doctor", clip_bundle, "--device-memory", "1MiB", "--json")
    assert missed.returncode == 1
    told = json.loads(missed.stdout)
    assert told["fits"] is False
    assert told["total_bytes"] > 1 << 20
