"""Requests that are written down: which, what of them, and how many bytes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import SettingsError
from serving.access.keys import ApiKey, digest_of
from serving.access.settings import AccessSettings, RecordingSettings
from serving.api.app import create_app
from serving.api.images import image_part
from serving.api.record import RequestRecord
from serving.api.recording import Recorder
from serving.api.redaction import redacted
from serving.fake import FakeClient
from serving.settings import ApiSettings

CHAT = "/v1/chat/completions"
KEY = "pvlm-0123456789abcdef"


@pytest.fixture
def recorded(engine: FakeClient, make_caller: Callable[..., Any], tmp_path: Path) -> Any:
    """A caller of an application that records, and what reads the lines that it wrote."""

    def make(access: AccessSettings | None = None, **fields: Any) -> tuple[Any, Callable[[], list[dict[str, Any]]]]:
        recording = RecordingSettings(folder=tmp_path / "recorded", **fields)
        app = create_app(engine, ApiSettings(recording=recording, access=access or AccessSettings()), control=engine)

        def lines() -> list[dict[str, Any]]:
            app.state.service.recorder.flush()
            return [json.loads(line) for file in files(tmp_path) for line in file.read_text().splitlines()]

        return type(make_caller())(app), lines

    return make


def files(folder: Path) -> list[Path]:
    return sorted((folder / "recorded").glob("requests-*.jsonl"))


def test_nothing_is_written_by_default(api: Any, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    api.post(CHAT, ask())
    assert list(tmp_path.iterdir()) == []


def test_a_request_is_one_line_with_its_body_and_its_end(recorded: Any, ask: Any, tmp_path: Path) -> None:
    api, lines = recorded()
    api.post(CHAT, ask("one two", temperature=0.5), headers={"X-Request-ID": "job-7"})
    api.post(CHAT, ask(top_q=3))
    first, second = lines()
    assert first["body"] == ask("one two", temperature=0.5)
    assert (first["id"], first["status"], first["method"], first["path"]) == ("job-7", 200, "POST", CHAT)
    assert (first["model"], first["prompt_tokens"], first["completion_tokens"]) == ("fake-vlm", 2, 4)
    assert (second["status"], second["body"]["top_q"]) == (400, 3)
    (file,) = files(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_stream_is_written_when_it_has_ended(recorded: Any, ask: Any) -> None:
    api, lines = recorded()
    api.post(CHAT, ask(stream=True))
    assert [line["completion_tokens"] for line in lines()] == [4]


def test_images_are_digests_unless_they_are_asked_for(recorded: Any, ask: Any, image_part: Any, png: bytes) -> None:
    asked = ask([image_part(png), {"type": "text", "text": "what"}])
    api, lines = recorded()
    api.post(CHAT, asked)
    (line,) = lines()
    told = f"sha256:{hashlib.sha256(png).hexdigest()} image/png {len(png)} bytes"
    assert line["body"]["messages"][0]["content"][0]["image_url"]["url"] == told
    api, lines = recorded(images=True)
    api.post(CHAT, asked)
    assert lines()[-1]["body"] == asked


def test_no_key_is_written_wherever_its_caller_puts_it(recorded: Any, ask: Any, tmp_path: Path) -> None:
    kept = ApiKey(name="ci", sha256=digest_of(KEY.encode()))
    api, lines = recorded(AccessSettings(keys=(kept,)))
    headers = {"Authorization": f"Bearer {KEY}"}
    api.post(CHAT, ask(f"my key is {KEY}"), headers=headers)
    api.post(CHAT, {**ask(), "api_key": "sk-another-secret-of-mine"}, headers=headers)
    api.post(CHAT, ask(), headers={"Authorization": "Bearer pvlm-of-a-stranger-0000"})
    first, second = lines()  # what is refused at the door is not written
    assert first["key"] == "ci"
    assert first["body"]["messages"][0]["content"] == "my key is [redacted]"
    assert second["body"]["api_key"] == "[redacted]"
    text = "".join(file.read_text() for file in files(tmp_path))
    assert not [secret for secret in (KEY, kept.sha256, "another-secret", "stranger") if secret in text]


def test_what_changes_the_server_is_not_written_so_that_it_is_not_asked_again(recorded: Any, tmp_path: Path) -> None:
    admin = ApiKey(name="boss", sha256=digest_of(KEY.encode()), admin=True)
    api, lines = recorded(AccessSettings(keys=(admin,), models_dir=tmp_path))
    headers = {"Authorization": f"Bearer {KEY}"}
    assert api.post("/v1/models/load", {"model": "absent"}, headers=headers).status_code == 404
    assert api.post("/v1/models/unload", {"model": "absent"}, headers=headers).status_code == 404
    assert lines() == []


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"url": "https://h/a.png?X-Signature=abc#x"}, {"url": "https://h/a.png?[redacted]"}),
        ({"url": "https://user:word@h/a.png"}, {"url": "https://h/a.png?[redacted]"}),
        ({"url": " https://h/a.png?sig=abc\n"}, {"url": "https://h/a.png?[redacted]"}),
        ({"url": "https://h/a.png"}, {"url": "https://h/a.png"}),
        ({"url": " \nHTTPS://h/a.png?X-Signature=abc "}, {"url": "HTTPS://h/a.png?[redacted]"}),
        ({"url": "https://h/a b.png?X-Signature=abc"}, {"url": "https://h/a b.png?[redacted]"}),
        ({"url": "http:h/a.png?X-Signature=abc"}, {"url": "http://h/a.png?[redacted]"}),
        ({"Authorization": "Bearer x", "max_tokens": 3}, {"Authorization": "[redacted]", "max_tokens": 3}),
        ({"token": 5, "stop": ["a", None, True]}, {"token": 5, "stop": ["a", None, True]}),
        ("what? https://h/?x=1 said so", "what? https://h/?x=1 said so"),
    ],
)
def test_signed_urls_and_fields_named_as_secrets_are_hidden(value: Any, told: Any) -> None:
    assert redacted(value, keeps_images=False) == told


def test_anthropics_images_and_broken_ones_are_digests_too(png: bytes) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png).decode()}
    digest = hashlib.sha256(png).hexdigest()
    assert redacted(source, keeps_images=False)["data"] == f"sha256:{digest} base64 {len(png)} bytes"
    url = f"\n Data:image/png;base64, {base64.b64encode(png).decode()} "
    assert redacted(url, keeps_images=False) == f"sha256:{digest} image/png {len(png)} bytes"
    broken = redacted("data:image/png;base64,###", keeps_images=False)
    assert broken.startswith("sha256:")
    assert "###" not in broken
    assert redacted("data:nonsense", keeps_images=False).startswith("sha256:")
    moved_in = f" \n Data:image/png;base64,{source['data']}"
    assert image_part(moved_in, "image", len(png)).data == png
    assert redacted(moved_in, keeps_images=False) == f"sha256:{digest} image/png {len(png)} bytes"


def test_the_oldest_files_go_and_a_line_that_is_too_long_is_only_told_of(tmp_path: Path) -> None:
    recorder = Recorder(RecordingSettings(folder=tmp_path / "recorded", max_bytes=64 << 10))
    body = json.dumps({"text": "x" * 1000}).encode()
    for number in range(200):
        recorder.note(RequestRecord(f"job-{number}", 0.0), "POST", CHAT, body, b"")
    recorder.note(RequestRecord("large", 0.0), "POST", CHAT, json.dumps({"text": "x" * 10_000}).encode(), b"")
    recorder.note(RequestRecord("broken", 0.0), "POST", CHAT, b"{", b"")
    recorder.flush()
    found = files(tmp_path)
    assert sum(file.stat().st_size for file in found) <= 64 << 10
    lines = {line["id"]: line for file in found for line in map(json.loads, file.read_text().splitlines())}
    assert "job-0" not in lines
    assert "job-199" in lines
    assert lines["large"]["unread"].endswith("more than one file of the recording holds")
    assert lines["broken"]["unread"] == "1 bytes that are no JSON"


def test_files_of_an_earlier_server_count_too(tmp_path: Path) -> None:
    folder = tmp_path / "recorded"
    folder.mkdir()
    (folder / "requests-old.jsonl").write_bytes(b"x" * (64 << 10))
    (folder / "notes.txt").write_bytes(b"mine")
    Recorder(RecordingSettings(folder=folder, max_bytes=64 << 10))
    assert sorted(file.name for file in folder.iterdir())[0] == "notes.txt"
    assert not (folder / "requests-old.jsonl").exists()


@pytest.mark.parametrize("is_folder", [False, True], ids=["a file", "the folder"])
def test_what_was_taken_away_is_begun_anew(tmp_path: Path, is_folder: bool) -> None:
    recorder = Recorder(RecordingSettings(folder=tmp_path / "recorded"))
    recorder.note(RequestRecord("before", 0.0), "POST", CHAT, b"{}", b"")
    recorder.flush()
    (file,) = files(tmp_path)
    file.unlink()
    if is_folder:
        file.parent.rmdir()
    for name in ("first", "second"):
        recorder.note(RequestRecord(name, 0.0), "POST", CHAT, b"{}", b"")
    recorder.flush()
    (file,) = files(tmp_path)
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["first", "second"]


def test_a_file_into_which_another_process_writes_stays(tmp_path: Path) -> None:
    folder = tmp_path / "recorded"
    folder.mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    living, dead = os.getppid(), gone.pid
    names = [f"requests-20260101T000000-{process}-{number:06}.jsonl" for process in (living, dead) for number in (1, 2)]
    for name in names:
        (folder / name).write_bytes(b"x" * (64 << 10))
    Recorder(RecordingSettings(folder=folder, max_bytes=64 << 10))
    kept = [file.name for file in files(tmp_path)]
    assert [name for name in names if name in kept] == [names[1]]


def test_bodies_that_come_faster_than_they_are_written_are_counted_and_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.api.recording._MOST_WAITING_BYTES", 10)
    recorder = Recorder(RecordingSettings(folder=tmp_path / "recorded"))
    recorder.note(RequestRecord("large", 0.0), "POST", CHAT, b"[1,2,3,4,5]", b"")
    recorder.note(RequestRecord("small", 0.0), "POST", CHAT, b"[]", b"")
    recorder.flush()
    (line,) = [json.loads(line) for file in files(tmp_path) for line in file.read_text().splitlines()]
    assert (line["id"], line["missed_before"]) == ("small", 1)


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="requests cannot be recorded in"):
        Recorder(RecordingSettings(folder=tmp_path / "file" / "below"))
