"""A bundle is a stranger's folder: whatever is wrong with it is told in one line, soon and in little memory."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from bundle.directory import open_bundle, read_manifest, seal
from bundle.errors import BundleError, BundleFileError, BundleFormatError, ContextLengthError
from bundle.generation import SamplingDefaults
from bundle.golden import GOLDEN, load_golden
from bundle.image import PREPROCESSOR, ImageSpec, TileLayout
from bundle.manifest import check_name
from bundle.prompt import Placeholder, PromptBuilder, Turn
from bundle.text import Tokenizer

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def copied(smolvlm_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smolvlm_bundle, tmp_path / "bundle"))


def _edited(path: Path, edit: Edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


MANIFESTS: dict[str, Edit] = {
    "a name with escapes": lambda m: m.update(name="x\x1b[31m"),
    "a name of two lines": lambda m: m.update(name="x\ny"),
    "a name that leads elsewhere": lambda m: m.update(name="../../x"),
    "an empty name": lambda m: m.update(name=""),
    "a long name": lambda m: m.update(name="x" * 201),
    "a source with escapes": lambda m: m.update(source="\x1b]0;x\x07"),
    "a graph with escapes": lambda m: m["components"].update({"\x1b[31m": m["components"].pop("decoder")}),
    "a choice with escapes": lambda m: m["components"]["decoder"].update(detail="\x1b[31m"),
    "more tokens a tile than any": lambda m: m["image_prompt"].update(tokens_per_tile=10**9),
    "other tokens a tile than the encoder's": lambda m: m["image_prompt"].update(
        tokens_per_tile=m["image_prompt"]["tokens_per_tile"] + 1
    ),
    "no image token": lambda m: m["image_prompt"].update(image_token=""),
    "a negative id": lambda m: m["image_prompt"].update(image_token_id=-1),
    "negative ends": lambda m: m.update(eos_token_ids=[-1]),
    "a huge end": lambda m: m.update(eos_token_ids=[10**30]),
    "a huge context": lambda m: m["decoder"].update(max_positions=10**30),
    "a huge vocabulary": lambda m: m["decoder"].update(vocab_size=10**9),
    "a huge state": lambda m: m["states"][0].update(shape=["B", 10**9, "S", 10**9]),
    "an infinite state": lambda m: m["states"][0].update(shape=["B", 10**300, "S", 1]),
    "too many states": lambda m: m.update(states=[{**m["states"][0], "input": str(i)} for i in range(20000)]),
    "too many graphs": lambda m: m.update(components={str(i): m["components"]["decoder"] for i in range(100)}),
    "no graphs": lambda m: m.update(components={}),
    "a graph of strings": lambda m: m["components"]["decoder"].update(inputs="x"),
    "a number as the name": lambda m: m.update(name=3),
    "nothing at all": lambda m: m.clear(),
}


@pytest.mark.parametrize("name", [each for each in MANIFESTS if each != "no graphs"])
def test_manifest_that_says_too_much_is_refused_in_one_line(name: str, copied: Path) -> None:
    _edited(copied / "manifest.json", MANIFESTS[name])
    with pytest.raises(BundleFormatError, match=r"manifest\.json") as told:
        read_manifest(copied)
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 1500


def test_choices_are_told_in_lines(copied: Path) -> None:
    told = "18 x w8a8 8-bit: prompts bring many rows\n1 x matmul_nbits 8-bit b64"
    _edited(copied / "manifest.json", lambda m: m["components"]["decoder"].update(detail=told))
    assert read_manifest(copied).components["decoder"].detail == told


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, "[]", "3", "", "\x00", '{"name": "\\ud800"}', "NaN"], ids=repr
)
def test_manifest_that_is_none_is_refused_in_one_line(content: str, copied: Path) -> None:
    (copied / "manifest.json").write_text(content)
    with pytest.raises(BundleFormatError) as told:
        read_manifest(copied)
    assert str(told.value).isprintable()


def test_manifest_of_gigabytes_is_not_read(copied: Path) -> None:
    os.truncate(copied / "manifest.json", 1 << 32)
    with pytest.raises(BundleFormatError, match="4294967296 bytes; at most 16777216"):
        read_manifest(copied)


@pytest.mark.parametrize("name", ["owner/model", "größe", "a b", "模型", "v1.0_x-y+z", "..a", "a..b"])
def test_names_of_models_are_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", " ", " a", "a ", "a\n", "\x07", "..", "a/../b", "/etc", "C:\\x", "\\\\host\\x", "x" * 201, "\u202eabc"]
)
def test_names_that_hurt_a_terminal_or_a_path_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="of no use"):
        check_name(name)


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer.json", "decoder.onnx", GOLDEN, "manifest.json"])
def test_links_out_of_the_bundle_are_refused(file: str, copied: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(copied / file, elsewhere)
    (copied / file).symlink_to(elsewhere)
    with pytest.raises(BundleFileError, match="leads out of the bundle"):
        open_bundle(copied)


def test_links_within_the_bundle_are_followed_as_a_mounted_volume_has_them(copied: Path, tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    shutil.copytree(copied, mounted / "..2026_data")
    (mounted / "..data").symlink_to("..2026_data")
    for path in copied.iterdir():
        (mounted / path.name).symlink_to(Path("..data") / path.name)
    assert open_bundle(mounted).name == open_bundle(copied).name


PREPROCESSORS: dict[str, Edit] = {
    "huge tiles": lambda p: p["geometry"].update(tile_px=30000),
    "negative tiles": lambda p: p["geometry"].update(tile_px=-1),
    "tiny tiles": lambda p: p["geometry"].update(tile_px=1, longest_edge_px=4096, splits=True),
    "a huge edge": lambda p: p["geometry"].update(longest_edge_px=10**30),
    "no deviation": lambda p: p.update(std=[0, 0, 0]),
    "hardly a deviation": lambda p: p.update(std=[1e-30, 1, 1]),
    "a negative deviation": lambda p: p.update(std=[-1, 1, 1]),
    "no number": lambda p: p.update(mean=[float("nan")] * 3),
    "an infinite mean": lambda p: p.update(mean=[float("inf")] * 3),
    "a huge factor": lambda p: p.update(rescale_factor=1e300),
    "no factor": lambda p: p.update(rescale_factor=0),
    "four channels": lambda p: p.update(mean=[0] * 4),
    "a huge short edge": lambda p: p.update(
        geometry={"kind": "cropped", "shortest_edge_px": 4096, "height_px": 8, "width_px": 8}
    ),
    "a huge height": lambda p: p.update(geometry={"kind": "fixed", "height_px": 10**6, "width_px": 8}),
}


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_preprocessing_that_costs_too_much_is_refused_in_one_line(name: str, copied: Path) -> None:
    _edited(copied / PREPROCESSOR, PREPROCESSORS[name])
    with pytest.raises(BundleFileError, match=r"preprocessor\.json") as told:
        ImageSpec.read(copied / PREPROCESSOR)
    assert str(told.value).isprintable()


@pytest.mark.parametrize("content", ["[" * 100_000, "", "[]", '{"temperature": NaN}', '{"temperature": 1e999}'])
def test_sampling_defaults_that_are_none_are_refused_in_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "generation.json"
    path.write_text(content)
    with pytest.raises(BundleFileError, match=r"generation\.json") as told:
        SamplingDefaults.read(path)
    assert str(told.value).isprintable()


def _member(shape: tuple[int, ...], descr: str, num_bytes: int) -> bytes:
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(num_bytes)


GOLDENS: dict[str, dict[str, bytes]] = {
    "a bomb": {"decoder.in.x.npy": _member((100_000_000,), "|u1", 100_000_000)},
    "many arrays": {f"decoder.in.{index}.npy": _member((1,), "|u1", 1) for index in range(5000)},
    "a shape without its bytes": {"decoder.in.x.npy": _member((10**12,), "<f4", 4)},
    "objects": {"decoder.in.x.npy": _member((1,), "|O", 8)},
    "texts": {"decoder.in.x.npy": _member((1,), "<U8", 32)},
    "records": {"decoder.in.x.npy": _member((1,), "V2147483647", 8)},
    "a negative shape": {"decoder.in.x.npy": _member((-4, -4), "<f4", 64)},
    "no array": {"decoder.in.x.npy": b"nothing"},
    "a header of code": {"decoder.in.x.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 3000) + b"(" * 3000},
    "another key": {"decoder.npy": _member((1,), "|u1", 1)},
}


@pytest.mark.parametrize("name", GOLDENS)
def test_recording_that_is_none_is_refused_before_it_is_unpacked(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / GOLDEN, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in GOLDENS[name].items():
            archive.writestr(member, content)
    with pytest.raises(BundleFileError, match=r"golden\.npz") as told:
        load_golden(tmp_path / GOLDEN)
    assert str(told.value).isprintable()


def _panicking(**parts: Any) -> Tokenizer:
    backend = Backend(models.BPE(vocab={letter: index for index, letter in enumerate("abxy")}, merges=[]))
    for name, part in parts.items():
        setattr(backend, name, part)
    return Tokenizer(backend)


def test_tokenizer_that_panics_fails_with_an_error_of_ours() -> None:
    catastrophic = _panicking(pre_tokenizer=pre_tokenizers.Split(Regex("(x+x+)+y"), "isolated"))
    assert catastrophic.encode("ab") == [0, 1]
    for encode in (catastrophic.encode, catastrophic.encode_plain):
        with pytest.raises(BundleFormatError, match=r"tokenizer\.json fails on a text of 5000 characters: Onig"):
            encode("x" * 5000)
    with pytest.raises(BundleFormatError, match=r"tokenizer\.json fails on 1 ids: index out of bounds"):
        _panicking(decoder=decoders.Strip("a", 5, 5)).decode([0])
    with pytest.raises(BundleFormatError, match=r"tokenizer\.json fails when it is read"):
        _panicking(
            pre_tokenizer=pre_tokenizers.Split(Regex("(a*)*$|(a|aa)+b"), "isolated"), model=models.Unigram([("b", 0.0)])
        )


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "{}", "", '{"version": "1.0", "model": {"type": "X"}}', "\x00"], ids=repr
)
def test_tokenizer_that_is_none_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BundleFormatError, match="is not a tokenizer") as told:
        Tokenizer.from_file(path)
    assert str(told.value).isprintable()


def test_files_of_gigabytes_are_not_read(copied: Path) -> None:
    for file in ("tokenizer.json", "chat_template.jinja"):
        before = (copied / file).read_bytes()
        os.truncate(copied / file, 1 << 32)
        bundle = seal(copied, read_manifest(copied), {**read_manifest(copied).files})
        with pytest.raises(BundleError, match="4294967296 bytes; at most"):
            PromptBuilder.from_bundle(bundle)
        (copied / file).write_bytes(before)


def test_what_a_template_makes_is_judged_before_it_is_tokenized(copied: Path) -> None:
    (copied / "chat_template.jinja").write_text(
        "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}"
        "{% for i in range(5000) %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}{% endfor %}"
    )
    prompts = PromptBuilder.from_bundle(seal(copied, read_manifest(copied)))
    turns = [Turn("user", ("hello " * 10,))]
    assert prompts.build(turns, [], max_tokens=1 << 20).num_tokens > 5000
    with pytest.raises(ContextLengthError, match="the text holds 300000 characters; 100 tokens hold at most"):
        prompts.build(turns, [], max_tokens=100)


def test_images_that_fill_the_context_are_refused_before_their_tokens_are_written(smolvlm_bundle: Path) -> None:
    prompts = PromptBuilder.from_bundle(open_bundle(smolvlm_bundle))
    turns, layout = [Turn("user", (Placeholder.IMAGE, "what?"))], TileLayout(60, 60)
    with pytest.raises(ContextLengthError, match=r"the 1 images take \d+ tokens; the context holds 500"):
        prompts.build(turns, [layout], max_tokens=500)


def test_arrays_that_were_recorded_come_back(smolvlm_bundle: Path) -> None:
    assert np.isfinite(load_golden(smolvlm_bundle / GOLDEN)["decoder"].outputs["logits"]).all()
