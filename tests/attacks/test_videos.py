"""A video costs what it costs by the clock, in a process that can be stopped: it holds up nobody else, and is told."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from bystanders import ATTACKER_TIMEOUT_S, BYSTANDER_TIMEOUT_S, MAX_BYSTANDER_S, bystanders
from damage import Record
from payloads import chat, costly_videos, frames_part, large_png, small_png, text_part, video_part
from victim import Victim
from wire import CHAT, ask

pytestmark = pytest.mark.attack

COSTLY = costly_videos()
IN_ONE_IMAGE = {"layout": "image-grid"}
"""So that the tokens of many frames are no reason to refuse them before they are decoded."""


@pytest.fixture(autouse=True)
def _has_the_extra() -> None:
    pytest.importorskip("av", reason="the extra video is not installed")


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_video_is_answered_or_refused_in_bounded_time(name: str, shipped: Victim, record: Record) -> None:
    body = chat(shipped.chat_model, [COSTLY[name](), text_part("x")], video=IN_ONE_IMAGE)
    with record.attack(f"video: {name}", shipped) as attack:
        attack.came(ask(shipped.port, CHAT, body, ATTACKER_TIMEOUT_S))


def test_videos_that_decode_for_long_hold_up_nobody(shipped: Victim, record: Record) -> None:
    body = chat(shipped.chat_model, [frames_part([large_png()] * 64), text_part("x")], video=IN_ONE_IMAGE)
    with (
        record.attack("videos: two of 64 frames of 49 MP, and bystanders", shipped) as attack,
        ThreadPoolExecutor(2) as threads,
    ):
        sent = [threads.submit(ask, shipped.port, CHAT, body, ATTACKER_TIMEOUT_S) for _ in range(2)]
        time.sleep(1)
        bystanders(shipped, attack)
        attack.came(*(each.result() for each in sent))


def test_what_a_client_left_to_decode_is_not_decoded_to_the_end(shipped: Victim, record: Record) -> None:
    body = chat(shipped.chat_model, [frames_part([large_png()] * 64), text_part("x")], video=IN_ONE_IMAGE)
    with record.attack("videos: the senders of two such leave", shipped) as attack:
        with ThreadPoolExecutor(2) as threads:
            for _ in range(2):
                threads.submit(ask, shipped.port, CHAT, body, 2)
        small = chat(shipped.chat_model, [frames_part([small_png()] * 2), text_part("x")])
        reply = ask(shipped.port, CHAT, small, BYSTANDER_TIMEOUT_S)
        attack.came(reply)
        attack.must(reply.seconds <= MAX_BYSTANDER_S, f"a small video, afterwards: {reply}")


def test_playlists_and_references_open_nothing(shipped: Victim, record: Record) -> None:
    """FFmpeg reads formats that name other files; none of them is opened here, whatever it is called."""
    files = {
        "HLS": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "an SDP": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "an AVI": b"RIFF\x24\0\0\0AVI LIST",
    }
    with record.attack("videos: playlists", shipped) as attack:
        for data in files.values():
            reply = ask(shipped.port, CHAT, chat(shipped.chat_model, [video_part(data)]), BYSTANDER_TIMEOUT_S)
            attack.came(reply)
            attack.must(reply.status == 400, f"{data[:20]!r}: {reply}")
