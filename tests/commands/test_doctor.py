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
