"""A small part of the fuzzing that bundles were put through: a stranger's bytes give an error of ours or a result."""

from __future__ import annotations

import io
import json
import random
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.chat_template import ChatTemplate
from bundle.decode import decode_image
from bundle.directory import read_manifest
from bundle.errors import PocketVLMError
from bundle.external_data import external_files
from bundle.golden import GOLDEN, load_golden
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.text import Tokenizer

NUM_INPUTS = 150
"""Of each kind and seed; the whole took 100,000 and more."""
WIDE = (0, 1, 255, 256, 65535, 65536, 0x7FFFFFFF, 0xFFFFFFFF)
VALUES = [
    None,
    True,
    0,
    -1,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "\x1b[31m",
    "../x",
    "a" * 20_000,
    [],
    {},
    [[]],
    "B",
]
PIECES = [
    "{{ m.content }}",
    "{% for a in range(99999) %}",
    "{% endfor %}",
    "{{ n.x * 99 }}",
    "{% set n.x = n.x ~ n.x %}",
    "{% set n.x = [n.x, n.x] %}",
    "{% set n.x = n.x + n.x %}",
    "{{ n.x|tojson }}",
    "{{ n.x|join('x' * 999)|center(9999) }}",
    "{% if m.role == 'user' %}",
    "{% endif %}",
    "{% macro f(a) %}",
    "{% endmacro %}",
    "{{ f(f) }}",
    "{{ 7 ** 99999 }}",
    "{{ '%99999d' % 1 }}",
    "{{ m|dictsort|batch(3)|list }}",
    "{% for p in messages recursive %}",
    "{{ loop(messages) }}",
    "{{ [1, 2][0:1] == n.x }}",
]


def _mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 5, 20))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            changed[at : at + 1] = bytes((rng.randrange(256),))
        elif kind == 1:
            del changed[at : at + rng.randrange(40)]
        elif kind == 2:
            changed[at : at + 4] = rng.choice(WIDE).to_bytes(4, rng.choice(("big", "little")))
        elif kind == 3:
            changed[at:at] = changed[at : at + rng.randrange(60)] * rng.randrange(9)
        else:
            del changed[at:]
    return bytes(changed)


def _changed(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with something in it replaced, renamed, left out or repeated."""
    if rng.random() < 0.1 or not isinstance(value, (dict, list)) or not value:
        return rng.choice(VALUES)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        repeated = value * rng.choice((1, 1, 30))
        return [*repeated[:at], _changed(repeated[at], rng), *repeated[at + 1 :]]
    key = rng.choice(list(value))
    kept = {name: each for name, each in value.items() if name != key or rng.random() < 0.8}
    return {**kept, rng.choice((key, key, key, key + "\x07")): _changed(value[key], rng)}


def _file(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _images() -> list[bytes]:
    picture = Image.radial_gradient("L").resize((37, 23)).convert("RGB")
    clear, exif = picture.copy(), Image.Exif()
    clear.putalpha(90)
    exif[0x0112] = 6
    wide = Image.fromarray((np.arange(600, dtype=np.uint16) * 99).reshape(20, 30))
    plain = [_file(picture, form) for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    several = [_file(picture, form, save_all=True, append_images=[clear]) for form in ("PNG", "WEBP", "GIF")]
    packed = [_file(picture, "TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg", "packbits")]
    odd = [_file(clear, "PNG", exif=exif), _file(wide, "PNG"), _file(picture, "JPEG", progressive=True, exif=exif)]
    return [*plain, *several, *packed, *odd]


@pytest.mark.parametrize("seed", range(3))
def test_images(seed: int) -> None:
    rng, files = random.Random(seed), _images()
    for _ in range(NUM_INPUTS):
        with suppress(PocketVLMError):
            assert decode_image(_mutated(rng.choice(files), rng)).mode == "RGB"


@pytest.mark.parametrize("seed", range(3))
def test_files_of_a_bundle(seed: int, smolvlm_bundle: Path, tmp_path: Path) -> None:
    rng = random.Random(seed)
    readers = {
        "manifest.json": lambda path: read_manifest(path.parent),
        PREPROCESSOR: ImageSpec.read,
        "tokenizer.json": lambda path: Tokenizer.from_file(path).encode("größe <image> 🙂"),
        "vision_encoder.onnx": external_files,
    }
    for file, read in readers.items():
        content = (smolvlm_bundle / file).read_bytes()
        for _ in range(NUM_INPUTS):
            is_json = file.endswith(".json") and rng.random() < 0.8
            changed = json.dumps(_changed(json.loads(content), rng)).encode() if is_json else _mutated(content, rng)
            (tmp_path / file).write_bytes(changed)
            told = ""
            try:
                read(tmp_path / file)
            except PocketVLMError as error:
                told = str(error)
            assert told.isprintable()


@pytest.mark.parametrize("seed", range(3))
def test_recordings(seed: int, smolvlm_bundle: Path, tmp_path: Path) -> None:
    rng = random.Random(seed)
    with zipfile.ZipFile(smolvlm_bundle / GOLDEN) as archive:
        members = {name: archive.read(name) for name in archive.namelist()[:3]}
    for _ in range(NUM_INPUTS):
        name = rng.choice(list(members))
        with zipfile.ZipFile(tmp_path / GOLDEN, "w") as archive:
            archive.writestr(name, _mutated(members[name][:128], rng) + members[name][128:])
        with suppress(PocketVLMError):
            load_golden(tmp_path / GOLDEN)


@pytest.mark.parametrize("seed", range(3))
def test_templates(seed: int) -> None:
    rng = random.Random(seed)
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    for _ in range(NUM_INPUTS // 3):
        pieces = "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 9)))
        source = "{% set n = namespace(x='ab') %}{% for m in messages %}" + pieces + "{% endfor %}"
        with suppress(PocketVLMError):
            ChatTemplate(source, {}).render(messages, add_generation_prompt=True)
