"""Keys of the environment, and how a key ends."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from bundle.errors import SettingsError
from serving.access.keys import ApiKey, digest_of, keys_of_environment, new_key
from serving.settings_sources import load_settings

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
LONG = "0123456789abcdef"


def test_no_two_keys_are_alike_and_each_has_256_bits() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key.removeprefix("pvlm-")) == 43 for key in keys)  # 6 bits a character


def test_a_digest_is_sha256_in_hexadecimal_digits() -> None:
    # NIST's example of a message of three letters
    assert digest_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_keys_of_the_environment_are_hashed_settings() -> None:
    environment = {"POCKETVLM_API_KEYS": f"{LONG}, second-{LONG}", "POCKETVLM_ADMIN_KEYS": f"admin-{LONG}"}
    settings = load_settings(None, environment)
    keys = settings.api.access.keys
    assert [(key.name, key.admin) for key in keys] == [
        ("POCKETVLM_API_KEYS-1", False),
        ("POCKETVLM_API_KEYS-2", False),
        ("POCKETVLM_ADMIN_KEYS-1", True),
    ]
    assert keys[0].sha256 == digest_of(LONG.encode())
    assert settings.api.access.needs_key
    assert LONG not in f"{settings!r}{settings.model_dump()}{settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("short", "key 1 has 5 characters; at least 16"),
        ("", "key 1 has 0 characters"),
        (f"{LONG},", "key 2 has 0 characters"),
        (f"{LONG} {LONG}", "holds a blank"),
        (f"{LONG}é", "what is no ASCII"),
    ],
)
def test_a_key_that_is_unsafe_or_cannot_be_sent_is_refused_and_not_told(value: str, named: str) -> None:
    with pytest.raises(SettingsError, match=f"variable POCKETVLM_API_KEYS: .*{named}") as refused:
        keys_of_environment({"POCKETVLM_API_KEYS": value})
    assert "short" not in str(refused.value)
    assert LONG not in str(refused.value)


def test_a_plain_key_in_a_settings_file_is_refused_and_not_told(tmp_path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f'[[api.access.keys]]\nname = "a"\nsha256 = "{LONG}"\n')
    with pytest.raises(SettingsError, match=r"api\.access\.keys\.0\.sha256") as refused:
        load_settings(file, {})
    assert LONG not in str(refused.value)


def test_a_key_is_taken_until_it_expires_or_is_revoked() -> None:
    key = ApiKey(name="ci", sha256="0" * 64, expires=NOW)
    assert key.refusal(NOW - timedelta(seconds=1)) == ""
    assert key.refusal(NOW) == "the key ci expired on 2026-01-01 00:00 UTC"
    assert "was revoked" in ApiKey(name="ci", sha256="0" * 64, revoked=NOW).refusal(NOW - timedelta(days=1))
