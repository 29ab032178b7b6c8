"""Data URLs as people write them."""

from __future__ import annotations

import base64
import urllib.parse

import numpy as np
import pytest

from bundle.errors import ImageError
from serving.api import images
from serving.api.images import image_part, split_data_url

DATA = np.random.default_rng(0).bytes(1000)  # two bytes over a multiple of three: it has padding
TEXT = base64.b64encode(DATA).decode()

URLS = {
    "as registered": f"data:image/png;base64,{TEXT}",
    "a parameter": f"data:image/png;charset=utf-8;base64,{TEXT}",
    "a name with capitals and spaces": f"data:image/png; name=A.png; base64,{TEXT}",
    "no media type": f"data:;base64,{TEXT}",
    "a type for anything": f"data:application/octet-stream;base64,{TEXT}",
    "a phone's JPEG": f"data:image/mpo;base64,{TEXT}",
    "capitals": f"DATA:IMAGE/JPEG;BASE64,{TEXT}",
    "line breaks": "data:image/png;base64," + base64.encodebytes(DATA).decode(),
    "Windows' line breaks": "data:image/png;base64," + base64.encodebytes(DATA).decode().replace("\n", "\r\n"),
    "spaces around": f"  data:image/png;base64, {TEXT} ",
    "percent signs": "data:image/png;base64," + urllib.parse.quote(TEXT, safe=""),
    "small percent signs": "data:image/png;base64," + urllib.parse.quote(TEXT, safe="").replace("%2B", "%2b"),
    "the URL-safe alphabet": "data:image/png;base64," + base64.urlsafe_b64encode(DATA).decode(),
    "no padding": f"data:image/png;base64,{TEXT.rstrip('=')}",
}


@pytest.mark.parametrize("url", URLS.values(), ids=URLS.keys())
@pytest.mark.parametrize("slice_characters", [4, 64, 1 << 20])
def test_a_data_url_gives_its_bytes_however_it_is_written(
    url: str, slice_characters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_SLICE_CHARACTERS", slice_characters)
    assert image_part(url, "url", len(DATA)).data == DATA


@pytest.mark.parametrize("num_bytes", range(1, 13))
@pytest.mark.parametrize("slice_characters", [4, 5, 7])
def test_every_length_is_decoded_whole(num_bytes: int, slice_characters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_SLICE_CHARACTERS", slice_characters)
    url = f"data:;base64,{base64.b64encode(DATA[:num_bytes]).decode()}"
    assert image_part(url, "url", num_bytes).data == DATA[:num_bytes]
    if num_bytes > 1:
        with pytest.raises(ImageError, match=f"holds {num_bytes} bytes; at most {num_bytes - 1}"):
            image_part(url, "url", num_bytes - 1)


@pytest.mark.parametrize(
    "payload", ["A", "AAAAA", "AA=A", "AAAA=AAAA", "AA%41A", "AA!A", "AAé", "", "=", " \n"], ids=repr
)
@pytest.mark.parametrize("slice_characters", [4, 1 << 20])
def test_what_is_no_base64_is_refused(payload: str, slice_characters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_SLICE_CHARACTERS", slice_characters)
    with pytest.raises(ImageError, match=r"base64|0 bytes"):
        image_part(f"data:image/png;base64,{payload}", "url", 1000)


def test_what_stands_before_the_comma_is_bounded_before_it_is_cut() -> None:
    most = images._MOST_HEADER_CHARACTERS
    fits = f"data:image/png;{'x' * (most - len('data:image/png;;base64'))};base64"
    assert split_data_url(f"{fits},AAAA", "p") == ("image/png", "AAAA")
    for header in (f"{fits} ", "data:" + ";" * most, f"data:image/png;base64{' ' * most}"):
        with pytest.raises(ImageError, match=f"holds {len(header)} characters before its first comma"):
            split_data_url(f"{header},AAAA", "p")
    with pytest.raises(ImageError, match="is not a data URL; send data:image/png"):
        split_data_url("iVBO" * most, "p")
