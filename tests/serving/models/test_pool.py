import threading
import time
from concurrent.futures import ThreadPoolExecutor

from serving.models.pool import _Room


def test_pixels_at_once_never_exceed_the_room_and_the_largest_image_goes_alone() -> None:
    room, gate, held, most = _Room(10), threading.Lock(), 0, []

    def decode(num_pixels: int) -> None:
        nonlocal held
        with room.taken(num_pixels):
            with gate:
                held += num_pixels
                most.append(held)
            time.sleep(0.005)
            with gate:
                held -= num_pixels

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(decode, [4, 6, 5, 99, 3, 3, 3, 1, 99, 10, 4, 6] * 3))
    assert held == 0
    assert {total for total in most if total > 10} == {99}
    assert any(total not in (4, 6, 5, 99, 3, 1, 10) for total in most), "no two were ever held at once"
