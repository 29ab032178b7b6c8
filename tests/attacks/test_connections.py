"""What is sent beside a body (headers, time, connections) is bounded too."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from damage import Attack, Record
from payloads import MB, chat, long_chat
from victim import Victim
from wire import CHAT, ask, connect, exchange, is_open, read_reply, request_bytes

PATIENCE_S = 5.0
"""After the server's own deadline, on a busy machine."""
HELD_TIMEOUT_S = 75.0
ACCEPT_S = 0.5
"""For a thousand connections that come at once: each is accepted before the probe that came behind them."""
FLOOD_MB, MAX_FLOOD_GROWTH_MB = 64, 32.0
"""Sent of a head, and what that may cost: a server may read on after its refusal, so that the client sees it."""
CLOSES_WITHIN_S = 10.0
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def is_closed_on(port: int, first: bytes, piece: bytes) -> bool:
    """Send pieces until the server closes, or so much that it should; say whether it closed then, or soon after."""
    with connect(port) as connection:
        try:
            connection.sendall(first)
            for _ in range(int(FLOOD_MB * MB / len(piece))):
                connection.sendall(piece)
            connection.settimeout(CLOSES_WITHIN_S)
            while connection.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
    return True


HEADS = {
    "a header without end": (b"GET /health/live HTTP/1.1\r\nX-A: ", b"a" * 65536),
    "headers without end": (
        b"GET /health/live HTTP/1.1\r\n",
        b"".join(b"X-%d: aaaaaaaaaa\r\n" % index for index in range(3000)),
    ),
    "a URL without end": (b"GET /", b"a" * 65536),
    "a chunk's length without end": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 65536),
    "trailers without end": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: aaaaaaaaaa\r\n" * 3000),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_bounded(name: str, fake: Victim, record: Record) -> None:
    first, piece = HEADS[name]
    with record.attack(f"connection: {name}", fake, max_growth_mb=MAX_FLOOD_GROWTH_MB) as attack:
        is_closed = is_closed_on(fake.port, first, piece)
        attack.must(is_closed, f"the connection is open {CLOSES_WITHIN_S:.0f} s after {FLOOD_MB} MB of it")


def held(victim: Victim, attack: Attack, begin: bytes, drip: bytes, count: int) -> None:
    """Open connections that send little, and wait until the server has closed them."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(victim.port)) for _ in range(count)]
        for connection in connections:
            connection.sendall(begin)
        deadline_s, left = time.monotonic() + HELD_TIMEOUT_S, connections
        while left and time.monotonic() < deadline_s:
            time.sleep(1)
            left = [connection for connection in left if is_open(connection) and dripped(connection, drip)]
        attack.must(not left, f"{len(left)} of {count} connections are open after {HELD_TIMEOUT_S:.0f} s")


def dripped(connection: socket.socket, drip: bytes) -> bool:
    """Send a little more; False where the server is gone."""
    try:
        return not drip or connection.send(drip) > 0
    except OSError:
        return False


SLOW = {
    "silence": (b"", b""),
    "slow headers": (HEAD, b"X-A: b\r\n"),
    "slow bodies": (HEAD + b"Content-Length: 1000000\r\n\r\n", b" "),
    "slow chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "an idle connection": (b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n", b""),
}


@pytest.mark.attack
@pytest.mark.parametrize("name", SLOW)
def test_a_request_that_never_ends_is_closed(name: str, shipped: Victim, record: Record) -> None:
    with record.attack(f"connection: 100 of {name}", shipped) as attack:
        held(shipped, attack, *SLOW[name], 100)


@pytest.mark.attack
def test_idle_connections_up_to_the_descriptors_leave_health_its_own(
    serve: Callable[..., contextlib.AbstractContextManager[Victim]], record: Record
) -> None:
    with (
        serve(limits={resource.RLIMIT_NOFILE: 1024}) as victim,
        record.attack("connections: 1,100 idle ones, 1,024 descriptors", victim, max_silence_s=ACCEPT_S) as attack,
    ):
        with contextlib.ExitStack() as stack:
            for _ in range(1100):
                with contextlib.suppress(OSError):
                    stack.enter_context(connect(victim.port))
            time.sleep(1)
            attack.must(victim.status("/health/live", 15) == 200, "/health/live is deaf meanwhile")
        answered_s = victim.wait_until(lambda: victim.status("/health/ready", 2) == 200, PATIENCE_S)
        attack.must(answered_s is not None, "/health/ready is deaf after they left")
        attack.came(ask(victim.port, CHAT, chat(victim.chat_model, "hello")))


@pytest.mark.attack
def test_bodies_that_wait_for_their_last_byte_are_bounded_in_bytes(shipped: Victim, record: Record) -> None:
    length, count = 31 << 20, 60
    with record.attack("connections: 60 bodies of 31 MiB that lack their end", shipped) as attack:
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(connect(shipped.port)) for _ in range(count)]
            for connection in connections:
                connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % length)
            for connection in connections:
                connection.settimeout(0.5)  # a server over its budget stops reading
                with contextlib.suppress(OSError):
                    connection.sendall(b" " * (30 << 20))
            time.sleep(2)
        attack.came(ask(shipped.port, CHAT, chat(shipped.chat_model, "hello")))


@pytest.mark.attack
def test_a_body_in_chunks_of_one_byte_stops_nobody(shipped: Victim, record: Record) -> None:
    with record.attack("connection: a body of 4 MB in chunks of one byte", shipped) as attack:
        request = HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + b"1\r\n \r\n" * (4 * MB)
        attack.came(exchange(shipped.port, request + b"0\r\n\r\n", 90))


@pytest.fixture
def running(shipped: Victim) -> Iterator[Victim]:
    """A server on which nothing runs, before and after."""
    yield shipped
    assert shipped.wait_until(shipped.is_idle, 20) is not None


@pytest.mark.attack
@pytest.mark.parametrize("num_behind", [0, 1, 40])
def test_a_client_that_left_is_noticed_whatever_it_sent_behind(
    num_behind: int, running: Victim, record: Record
) -> None:
    request = request_bytes(CHAT, long_chat(running.chat_model, 1, 2000), "")
    with record.attack(f"leaves: with {num_behind} requests pipelined behind the first", running) as attack:
        with connect(running.port) as connection:
            connection.sendall(request * (1 + num_behind))
            running.wait_until(lambda: running.gauge("num_requests_running") > 0, 10)
        free_s = running.wait_until(running.is_idle, 20)
        attack.must(free_s is not None and free_s < 2.0, f"its place was free after {free_s} s")


@pytest.mark.parametrize("count", [20])
def test_pipelined_requests_are_all_answered(count: int, fake: Victim, record: Record) -> None:
    last = request_bytes(CHAT, chat(fake.chat_model, "hello"))
    request = request_bytes(CHAT, chat(fake.chat_model, "hello"), "") * (count - 1) + last
    with record.attack(f"connection: {count} requests pipelined", fake) as attack:
        with connect(fake.port) as connection:
            connection.sendall(request)
            answers = b"".join(iter(lambda: connection.recv(65536), b""))
        heads = answers.count(b"HTTP/1.1 200 OK\r\n")
        attack.must(heads == count, f"{heads} of {count} were answered")


def test_a_stream_over_http_1_0_is_not_in_chunks(fake: Victim, record: Record) -> None:
    request = request_bytes(CHAT, chat(fake.chat_model, "a b c", stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0")
    with record.attack("connection: a stream over HTTP/1.0", fake) as attack:
        attack.came(reply := exchange(fake.port, request, 20))
        attack.must("transfer-encoding" not in reply.headers, f"RFC 9112, 6.1: {reply.headers}")


def test_a_client_that_only_closed_its_side_gets_its_answer(fake: Victim, record: Record) -> None:
    started_s = time.monotonic()
    with record.attack("connection: closed by the client for writing", fake) as attack:
        with connect(fake.port) as connection:
            connection.sendall(request_bytes(CHAT, chat(fake.chat_model, "hello")))
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        attack.came(read_reply(answer, True, time.monotonic() - started_s))


def test_what_is_no_http_is_closed_without_a_trace(fake: Victim, record: Record) -> None:
    noise = (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\x00" * 4096,
        b"GET /nothing HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    )
    both = HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with record.attack("connection: bytes that are no HTTP/1.1", fake) as attack:
        for request in (*noise, both):
            reply = exchange(fake.port, request, 3)
            attack.must(reply.status in (0, 400, 404, 405, 408, 501, 505), str(reply))
        attack.must("Traceback" not in fake.tail(), f"a traceback in the log: {fake.tail(300)}")
