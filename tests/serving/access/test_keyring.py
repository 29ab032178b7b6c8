"""The keys as the file has them now."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from bundle.errors import KeyRefusedError, SettingsError
from serving.access import keyring
from serving.access.key_file import revoke_key
from serving.access.keyring import Keyring
from serving.access.keys import ApiKey, digest_of
from serving.access.settings import AccessSettings


@pytest.fixture(autouse=True)
def _looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "_LOOK_S", 0.0)


def test_a_key_that_is_revoked_in_the_file_is_refused_without_a_restart(
    file: Path, make_key: Callable[..., str]
) -> None:
    one, other = make_key("one"), make_key("other")
    ring = Keyring(AccessSettings(keys_file=file))
    assert ring.match(one.encode()).name == "one"
    revoke_key(file, "one")
    with pytest.raises(KeyRefusedError, match="the key one was revoked on"):
        ring.match(one.encode())
    assert ring.match(other.encode()).name == "other"


def test_a_key_that_is_made_later_is_taken_without_a_restart(file: Path, make_key: Callable[..., str]) -> None:
    make_key("one")
    ring = Keyring(AccessSettings(keys_file=file))
    assert ring.match(make_key("late").encode()).name == "late"


def test_an_expired_key_and_a_wrong_one_are_told_apart(file: Path, make_key: Callable[..., str]) -> None:
    past = datetime.now(timezone.utc) - timedelta(days=1)
    old = make_key("old", expires=past)
    ring = Keyring(AccessSettings(keys_file=file))
    with pytest.raises(KeyRefusedError, match="the key old expired on"):
        ring.match(old.encode())
    with pytest.raises(KeyRefusedError, match="the key is wrong"):
        ring.match(old.encode() + b"x")
    with pytest.raises(KeyRefusedError, match="no key came"):
        ring.match(b"")


def test_a_file_that_becomes_unusable_changes_nothing_and_the_log_tells_once(
    file: Path, make_key: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    key = make_key()
    ring = Keyring(AccessSettings(keys_file=file))
    file.write_text("broken")
    for _ in range(3):
        assert ring.match(key.encode()).name == "ci"
    file.unlink()
    assert ring.match(key.encode()).name == "ci"
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 2
    assert "keys are as they were" in told[0]


def test_what_a_key_took_is_kept_unless_its_limits_change(file: Path, make_key: Callable[..., str]) -> None:
    key = make_key("a", requests_per_minute=5)
    ring = Keyring(AccessSettings(keys_file=file))
    mine = ring.limits_of(ring.match(key.encode()))
    make_key("b")
    assert ring.limits_of(ring.match(key.encode())) is mine
    file.write_text(file.read_text().replace('"requests_per_minute":5', '"requests_per_minute":6'))
    other = ring.limits_of(ring.match(key.encode()))
    assert other.headers["x-ratelimit-limit-requests"] == "6"


def test_nothing_is_kept_of_keys_that_are_gone(file: Path, make_key: Callable[..., str]) -> None:
    keys = [make_key(f"k{index}") for index in range(4)]
    ring = Keyring(AccessSettings(keys_file=file))
    for key in keys:
        ring.limits_of(ring.match(key.encode()))
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:1]))
    ring.match(keys[0].encode())
    assert len(ring._limits) == 1


def test_every_key_is_compared_in_constant_time(
    file: Path, make_key: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever key it is, as many comparisons are made, each by the function made for that."""
    keys = [make_key(f"k{index}") for index in range(5)]
    ring = Keyring(AccessSettings(keys_file=file))
    counts = []
    compare = keyring.hmac.compare_digest
    for key in (keys[0], keys[4], "none-of-them"):
        calls: list[str] = []
        monkeypatch.setattr(keyring.hmac, "compare_digest", lambda a, b, to=calls: to.append(a) or compare(a, b))
        try:
            ring.match(key.encode())
        except KeyRefusedError:
            assert key == "none-of-them"
        counts.append(len(calls))
    assert counts == [5, 5, 5]


def test_an_empty_file_lets_nobody_in(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.touch(0o600)
    ring = Keyring(AccessSettings(keys_file=file))
    assert "every request is refused" in caplog.text
    with pytest.raises(KeyRefusedError):
        ring.match(b"anything")


def test_a_key_that_is_given_twice_is_refused(file: Path, make_key: Callable[..., str]) -> None:
    key = make_key()
    given = ApiKey(name="again", sha256=digest_of(key.encode()))
    with pytest.raises(SettingsError, match="is among those of the settings too"):
        Keyring(AccessSettings(keys_file=file, keys=(given,)))
