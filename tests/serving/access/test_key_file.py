"""The file of keys: what is read, what is refused, and how it is changed."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from bundle.errors import SettingsError
from serving.access import key_file
from serving.access.key_file import add_key, read_keys, revoke_key
from serving.access.keys import ApiKey, digest_of

GOOD = '{"name": "a", "sha256": "%s"}' % ("0" * 64)


def write(file: Path, text: str, mode: int = 0o600) -> Path:
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)
    return file


def test_a_new_file_is_its_owners_alone_and_holds_no_key(file: Path, make_key: Callable[..., str]) -> None:
    key = make_key(requests_per_minute=3)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in file.read_text()
    assert key.removeprefix("pvlm-") not in file.read_text()
    (kept,) = read_keys(file)
    assert (kept.name, kept.sha256, kept.requests_per_minute) == ("ci", digest_of(key.encode()), 3)


def test_comments_and_other_keys_stay_when_one_is_added_or_revoked(file: Path) -> None:
    write(file, f"# whose are these\n\n{GOOD}\n", 0o640)
    add_key(file, ApiKey(name="b", sha256="1" * 64))
    revoke_key(file, "a")
    assert file.read_text().startswith("# whose are these\n\n")
    a, b = read_keys(file)
    assert (a.name, a.revoked is None, b.name, b.revoked) == ("a", False, "b", None)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640  # a group that may read it still may
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o620, 0o660, 0o666])
def test_a_file_that_is_open_to_others_is_refused(file: Path, mode: int) -> None:
    with pytest.raises(SettingsError, match=rf"open to others \(mode {mode:04o}\).*chmod 600"):
        read_keys(write(file, GOOD, mode))


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_a_group_may_read_it(file: Path, mode: int) -> None:
    assert len(read_keys(write(file, GOOD, mode))) == 1


def test_a_file_that_is_not_there_or_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        read_keys(tmp_path / "none")
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        read_keys(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads whatever it likes")
def test_a_file_that_may_not_be_read_is_refused(file: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: Permission denied"):
        read_keys(write(file, GOOD, 0o200))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("not json", "line 1: it is no JSON object"),
        ("[]", "line 1: it is no JSON object"),
        (f"{GOOD}\n{{}}", "line 2: name: Field required"),
        ('{"name": "a b", "sha256": "%s"}' % ("0" * 64), "line 1: name"),
        ('{"name": "a", "sha256": "pvlm-plain-text-key"}', "line 1: sha256"),
        (
            GOOD.replace("}", ', "requests_per_minute": 0}'),
            "line 1: requests_per_minute: .* greater than or equal to 1",
        ),
        (GOOD.replace("}", ', "tokens_per_minute": 0}'), "line 1: tokens_per_minute"),
        (GOOD.replace("}", ', "concurrent_requests": 0}'), "line 1: concurrent_requests"),
        (GOOD.replace("}", ', "expires": "2027-01-01T00:00:00"}'), "line 1: expires: .* timezone"),
        (GOOD.replace("}", ', "rpm": 5}'), "line 1: rpm: Extra inputs"),
        (f"{GOOD}\n{GOOD}", "key 2 has the name of an earlier one"),
        (GOOD + "\n" + GOOD.replace('"a"', '"b"'), "key 2 has the sha256 of an earlier one"),
        ("\n".join([GOOD] * 1001), "more than 1000 keys"),
        ("#" * ((1 << 20) + 1), "more than 1048576 bytes"),
    ],
)
def test_a_line_that_is_no_key_is_named_and_not_told(file: Path, text: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named) as refused:
        read_keys(write(file, text))
    assert "plain-text-key" not in str(refused.value)


def test_a_name_is_given_once_even_after_it_was_revoked(file: Path, make_key: Callable[..., str]) -> None:
    make_key("ci")
    revoke_key(file, "ci")
    with pytest.raises(SettingsError, match="has a key named ci already"):
        make_key("ci")
    with pytest.raises(SettingsError, match="no key named ci that could be revoked; there are: none"):
        revoke_key(file, "ci")


def test_a_full_file_takes_no_more(file: Path, make_key: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file, "MOST_KEYS", 2)
    make_key("a")
    make_key("b")
    with pytest.raises(SettingsError, match="holds 2 keys; at most 2"):
        make_key("c")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be written: No such file"):
        add_key(tmp_path / "none" / "keys", ApiKey(name="a", sha256="0" * 64))


def test_what_a_line_leaves_out_has_no_limit(file: Path) -> None:
    (key,) = read_keys(write(file, GOOD))
    assert json.loads(key.model_dump_json(exclude_defaults=True)) == json.loads(GOOD)
    assert (key.requests_per_minute, key.tokens_per_minute, key.concurrent_requests) == (None, None, None)
