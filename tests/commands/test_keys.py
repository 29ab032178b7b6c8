"""`pocketvlm keys`: keys are made, listed and revoked."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import typer

from commands.keys import moment_of
from serving.access.keyring import Keyring
from serving.access.settings import AccessSettings

NOW = datetime(2026, 11, 27, 12, tzinfo=timezone.utc)


def test_a_key_is_printed_once_and_taken_until_it_is_revoked(pocketvlm, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    made = pocketvlm("keys", "add", "ci", "--file", file, "--admin", "--expires", "30d", "--tokens-per-minute", "100")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert key.startswith("pvlm-")
    found = Keyring(AccessSettings(keys_file=file)).match(key.encode())
    assert (found.name, found.admin, found.tokens_per_minute) == ("ci", True, 100)
    listed = pocketvlm("keys", "list", "--file", file)
    assert "ci: taken; admin True" in listed.stdout
    assert pocketvlm("keys", "revoke", "ci", "--file", file).returncode == 0
    (told,) = json.loads(pocketvlm("keys", "list", "--file", file, "--json").stdout)
    assert told["revoked"]
    assert "sha256" not in told
    assert key not in file.read_text() + listed.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "a b"], "name = 'a b'"),
        (["add", "ci", "--requests-per-minute", "0"], "requests-per-minute = 0"),
        (["add", "ci", "--tokens-per-minute", "-5"], "tokens-per-minute = -5"),
        (["add", "ci", "--concurrent-requests", "0"], "to stop a key, revoke it"),
        (["add", "ci", "--expires", "2020-01-01"], "that is past"),
        (["add", "ci", "--expires", "soon"], "write 30d, 12h, 8w"),
        (["list"], "cannot be read"),
        (["revoke", "ci"], "cannot be read"),
    ],
)
def test_what_cannot_be_is_a_wrong_command_line_and_writes_nothing(
    pocketvlm, tmp_path: Path, arguments: list[str], words: str
) -> None:
    file = tmp_path / "keys.jsonl"
    done = pocketvlm("keys", *arguments, "--file", file)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert not file.exists()


def test_an_end_is_a_span_or_a_date() -> None:
    assert moment_of("12h", NOW) == NOW + timedelta(hours=12)
    assert moment_of("2w", NOW) == NOW + timedelta(days=14)
    assert moment_of("2027-01-31", NOW) == datetime(2027, 1, 31, tzinfo=timezone.utc)
    assert moment_of("2027-01-31T10:00:00+02:00", NOW) == datetime(2027, 1, 31, 8, tzinfo=timezone.utc)
    with pytest.raises(typer.BadParameter, match="that is past"):
        moment_of("0d", NOW)


def test_a_server_refuses_an_unusable_file_of_keys_before_it_loads_anything(pocketvlm, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    file.write_text("")
    file.chmod(0o644)
    done = pocketvlm("serve", "--keys-file", file)
    assert done.returncode != 0
    assert "is open to others (mode 0644)" in " ".join(done.stderr.split())
