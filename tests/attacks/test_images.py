"""An image costs what it costs by the clock: whoever sends dear ones holds up nobody else, and is told in the end."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from bystanders import ATTACKER_TIMEOUT_S, BYSTANDER_TIMEOUT_S, MAX_BYSTANDER_S, bystanders
from damage import Record
from payloads import chat, costly_images, image_part, jpeg_of_many_scans, large_png, small_png, text_part
from victim import Victim
from wire import CHAT, CLASSIFY, Reply, ask, exchange, request_bytes

pytestmark = pytest.mark.attack

DEADLINE_S = 20
"""That a client asks for itself; decoding all that it sends takes longer."""
COSTLY = costly_images()


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_image_is_answered_or_refused_in_bounded_time(name: str, shipped: Victim, record: Record) -> None:
    kind, make = COSTLY[name]
    body = chat(shipped.chat_model, [image_part(make(), kind), text_part("x")])
    with record.attack(f"image: {name}", shipped) as attack:
        attack.came(ask(shipped.port, CHAT, body, ATTACKER_TIMEOUT_S))


def test_images_that_decode_for_minutes_hold_up_nobody(shipped: Victim, record: Record) -> None:
    bomb = jpeg_of_many_scans(2000)
    body = chat(shipped.chat_model, [image_part(bomb, "jpeg"), text_part("x")])
    with (
        record.attack("images: two JPEGs of 2,000 scans, and bystanders", shipped) as attack,
        ThreadPoolExecutor(2) as threads,
    ):
        sent = [threads.submit(ask, shipped.port, CHAT, body, ATTACKER_TIMEOUT_S) for _ in range(2)]
        time.sleep(1)
        bystanders(shipped, attack)
        attack.came(*(each.result() for each in sent))


def test_what_a_client_left_to_decode_is_not_decoded_to_the_end(shipped: Victim, record: Record) -> None:
    body = chat(shipped.chat_model, [image_part(jpeg_of_many_scans(2000), "jpeg"), text_part("x")])
    with record.attack("images: the senders of two such JPEGs leave", shipped) as attack:
        with ThreadPoolExecutor(2) as threads:
            for _ in range(2):
                threads.submit(ask, shipped.port, CHAT, body, 2)
        picture = chat(shipped.chat_model, [image_part(small_png()), text_part("x")])
        reply = ask(shipped.port, CHAT, picture, BYSTANDER_TIMEOUT_S)
        attack.came(reply)
        attack.must(reply.seconds <= MAX_BYSTANDER_S, f"a small image, afterwards: {reply}")


def test_many_dear_images_end_by_their_deadline_and_hold_up_nobody(shipped: Victim, record: Record) -> None:
    images = [image_part(large_png(seed)) for seed in range(16)]
    body = chat(shipped.chat_model, [*images, text_part("x")])
    request = request_bytes(CHAT, body, f"Connection: close\r\nX-Request-Timeout: {DEADLINE_S}\r\n")
    with (
        record.attack("images: two chats of 16 PNGs of 49 MP, and bystanders", shipped) as attack,
        ThreadPoolExecutor(2) as threads,
    ):
        sent = [threads.submit(exchange, shipped.port, request, DEADLINE_S + BYSTANDER_TIMEOUT_S) for _ in range(2)]
        time.sleep(1)
        bystanders(shipped, attack)
        attack.came(*(each.result() for each in sent))


def test_a_flood_of_labels_does_not_hold_up_a_chat(shipped: Victim, record: Record) -> None:
    """Each classification tokenizes a thousand new labels."""
    is_over, replies, picture = threading.Event(), list[Reply](), image_part(small_png())

    def flood(client: int) -> None:
        turn = 0
        while not is_over.is_set():
            turn += 1
            labels = [f"a {client} {turn} {index} thing" for index in range(1000)]
            body = {"model": shipped.embedding_model, "images": [picture], "labels": labels}
            replies.append(ask(shipped.port, CLASSIFY, body, ATTACKER_TIMEOUT_S))

    with record.attack("labels: 16 clients of 1,000 each, and bystanders", shipped) as attack:
        with ThreadPoolExecutor(16) as threads:
            for client in range(16):
                threads.submit(flood, client)
            time.sleep(3)
            bystanders(shipped, attack)
            is_over.set()
        attack.came(*replies)
