"""A bundle is a stranger's file: whatever is in it, the server refuses it in a line, or serves it within bounds.

Whoever made it wrote its manifest too, so that the digests agree: they tell damage, not intent.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attack_bundles import plain_bundle
from damage import Attack, Record
from payloads import chat, image_part, small_png, text_part
from victim import Victim, peak_bytes, running_victim, serve_command
from wire import CHAT, ask

pytestmark = pytest.mark.attack

MAX_LOAD_S = 45.0
"""From the process's start to its refusal or its readiness, on a busy machine: 4 s on an idle one."""
MAX_ASK_S = 20.0
MAX_PEAK_MB = 700.0
"""Of a server whose sound bundle takes 170."""
ADDRESSES_BYTES = 12 << 30
"""So that a bundle that wins harms this machine no further."""


@pytest.fixture(scope="module")
def sound() -> Path:
    """A sound bundle."""
    return plain_bundle("vlm")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, to be spoilt."""
    yield Path(shutil.copytree(sound, tmp_path / "bundle"))
    shutil.rmtree(tmp_path / "bundle")


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest in place."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    change(manifest)
    file.write_text(json.dumps(manifest), encoding="utf-8")


def seal(folder: Path, unlisted: tuple[str, ...] = ()) -> None:
    """Record every file as it is now, but those to be kept out."""

    def record_files(manifest: dict[str, Any]) -> None:
        files = (path for path in sorted(folder.iterdir()) if path.name not in ("manifest.json", *unlisted))
        manifest["files"] = {
            path.name: {"size_bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in files
        }

    change_manifest(folder, record_files)


def try_bundle(
    folder: Path, attack: Attack, tmp_path: Path, num_turns: tuple[int, ...] = (1,), text: str = "word " * 20
) -> str:
    """Serve a bundle and chat with it; return what was said of it. It is refused in a line, or keeps its bounds."""
    limits = {resource.RLIMIT_AS: ADDRESSES_BYTES}
    command = serve_command([folder])
    with running_victim(command, tmp_path / "log", limits=limits, is_awaited=False) as victim:
        loaded_s = victim.wait_until(
            lambda: not victim.is_running or victim.status("/health/ready", 2) == 200, MAX_LOAD_S
        )
        attack.must(loaded_s is not None, f"neither refused nor ready after {MAX_LOAD_S:.0f} s")
        if victim.is_running and loaded_s is not None:
            converse(victim, attack, [*(chat_of_turns(count, text) for count in num_turns)])
        peak_mb = peak_bytes(victim.pid) / 1e6
        attack.must(peak_mb <= MAX_PEAK_MB, f"memory of {peak_mb:.0f} MB")
        said = victim.tail()
        attack.must("Traceback" not in said, f"a traceback: {said[-300:]}")
        return "served" if victim.is_running else said


def converse(victim: Victim, attack: Attack, bodies: list[dict[str, Any]]) -> None:
    """Ask with and without an image; every request ends well or in an error of ours, and the server stays."""
    model = json.loads(victim.get("/v1/models")[1])["data"][0]["id"]
    attack.must(model.isprintable() and model.strip() != "", f"it is served under the name {model!r}")
    picture = chat(model, [image_part(small_png()), text_part("x")])
    for body in (*({**body, "model": model} for body in bodies), picture, chat(model, "hello")):
        attack.came(reply := ask(victim.port, CHAT, body, MAX_ASK_S))
        attack.must(reply.code != "internal", f"an error that nobody foresaw: {reply}")
    attack.must(victim.is_running, f"the process ended: {victim.tail(200)}")
    attack.must(victim.status("/health/live") == 200, "live is red")


def chat_of_turns(count: int, text: str) -> dict[str, Any]:
    """Return a chat of so many messages, by turns the user's and the model's."""
    messages = [{"role": ("user", "assistant")[turn % 2], "content": text} for turn in range(count)]
    return {"messages": messages, "max_tokens": 4}


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TEXTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
MACRO = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}"
LATER = "{% if messages|length > 1 %}"
TEMPLATES = {
    "a loop": LOOP + TEXTS,
    "a loop at the third message": LATER + LOOP + "{% endif %}" + TEXTS,
    "4 GB of x, in a branch never taken": LATER + "{{ 'x' * 4000000000 }}{% endif %}" + TEXTS,
    "3 GB of blanks at the third message": LATER + "{{ 'x'.center(3000000000) }}{% endif %}" + TEXTS,
    "7 to the power of 100,000,000": "{{ 7 ** 100000000 }}" + TEXTS,
    "a list doubled 40 times": "{% set l = [1] %}{% for i in range(40) %}{% set l = l + l %}{% endfor %}" + TEXTS,
    "a macro that calls itself": MACRO + "{{ f(0) }}" + TEXTS,
    "a macro that calls itself, at the third message": MACRO + LATER + "{{ f(0) }}{% endif %}" + TEXTS,
    "a text 90,000 times": "{% for i in range(90000) %}{{ messages[0].content[0].text }}{% endfor %}",
    "3,000 brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}" + TEXTS,
    "a class's ancestors": "{{ ''.__class__.__mro__ }}{{ cycler.__init__.__globals__ }}" + TEXTS,
    "a format's attributes": "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}" + TEXTS,
    "a file of the host": "{% include '/etc/passwd' %}" + TEXTS,
    "a long date": "{{ strftime_now('%Y' * 1000000) }}" + TEXTS,
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_bounded_in_time_and_memory(name: str, folder: Path, record: Record, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")
    seal(folder)
    with record.attack(f"bundle: a template of {name}") as attack:
        try_bundle(folder, attack, tmp_path, (1, 3))


UNLISTED = ("decoder.onnx.data", "chat_template.jinja", "tokenizer.json", "preprocessor.json")
"""Without goldens a bundle is whole: nothing is replayed then."""


@pytest.mark.parametrize("name", UNLISTED)
def test_a_file_that_is_not_listed_is_not_used(name: str, folder: Path, record: Record, tmp_path: Path) -> None:
    seal(folder, unlisted=(name,))
    with record.attack(f"bundle: {name} is not listed") as attack:
        said = try_bundle(folder, attack, tmp_path)
        attack.must(said != "served" and name in said, f"it was {said[-200:]}")


def test_a_link_out_of_the_bundle_is_not_followed(folder: Path, record: Record, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("TOP SECRET {{ messages|length }}")
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").symlink_to(secret)
    seal(folder)
    with record.attack("bundle: chat_template.jinja leads to a file of the host") as attack:
        attack.must(try_bundle(folder, attack, tmp_path) != "served", "it was served")


def test_a_pipe_in_the_bundle_does_not_hold_up_the_start(folder: Path, record: Record, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    os.mkfifo(folder / "chat_template.jinja")
    with record.attack("bundle: chat_template.jinja is a pipe that nobody writes") as attack:
        attack.must(try_bundle(folder, attack, tmp_path) != "served", "it was served")


def test_an_archive_of_zeros_is_not_unpacked(folder: Path, record: Record, tmp_path: Path) -> None:
    size_bytes, piece = 3_000_000_000, bytes(10_000_000)
    with (
        zipfile.ZipFile(folder / "golden.npz", "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("decoder.in.bomb.npy", "w", force_zip64=True) as file,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (size_bytes,)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(size_bytes // len(piece)):
            file.write(piece)
    seal(folder)
    with record.attack("bundle: golden.npz of 3 MB holds 3 GB") as attack:
        try_bundle(folder, attack, tmp_path)


def in_table(table: str, **fields: Any) -> Callable[[dict[str, Any]], object]:
    """Return a change of a table of the manifest."""
    return lambda manifest: manifest[table].update(fields)


MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "10**12 positions": in_table("decoder", max_positions=10**12),
    "10**30 positions": in_table("decoder", max_positions=10**30),
    "10**9 words": in_table("decoder", vocab_size=10**9),
    "a hidden size of 10**9": in_table("decoder", hidden_size=10**9),
    "10**9 tokens per tile": in_table("image_prompt", tokens_per_tile=10**9),
    "one state": lambda manifest: manifest.update(states=manifest["states"][:1]),
    "states 10,000 times over": lambda manifest: manifest.update(states=manifest["states"] * 10_000),
    "heads of 10**9": lambda manifest: manifest["states"][0].update(shape=["B", 10**9, "S", 10**9]),
    "a name with escapes": lambda manifest: manifest.update(name="../../x\n\x1b[31m"),
    "an empty name": lambda manifest: manifest.update(name=""),
    "a component too few": lambda manifest: manifest["components"].pop("embed_tokens"),
    "a file outside": in_table("components", decoder={"file": "../../decoder.onnx"}),
    "10**6 end tokens": lambda manifest: manifest.update(eos_token_ids=list(range(10**6))),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_held_to_sense(name: str, folder: Path, record: Record, tmp_path: Path) -> None:
    change_manifest(folder, MANIFESTS[name])
    with record.attack(f"bundle: a manifest of {name}") as attack:
        try_bundle(folder, attack, tmp_path)


PREPROCESSORS: dict[str, dict[str, Any]] = {
    "a deviation of 0": {"std": [0, 0, 0]},
    "a factor of 1e300": {"rescale_factor": 1e300},
    "tiles of 30,000 pixels": {"geometry": 30_000},
}


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_a_preprocessor_is_held_to_sense(name: str, folder: Path, record: Record, tmp_path: Path) -> None:
    file = folder / "preprocessor.json"
    fields, change = json.loads(file.read_text(encoding="utf-8")), PREPROCESSORS[name]
    if "geometry" in change:
        sizes = {key: change["geometry"] for key in fields["geometry"] if key.endswith("_px")}
        change = {"geometry": {**fields["geometry"], **sizes}}
    file.write_text(json.dumps({**fields, **change}), encoding="utf-8")
    seal(folder)
    with record.attack(f"bundle: a preprocessor of {name}") as attack:
        try_bundle(folder, attack, tmp_path)


SPLITS = {"a regex that backtracks": "(a+)+$|(x+x+)+y", "a regex of 10**9 letters": "(?:(?:a{1000}){1000}){1000}"}


@pytest.mark.parametrize("name", SPLITS)
def test_a_tokenizer_cannot_end_the_server(name: str, folder: Path, record: Record, tmp_path: Path) -> None:
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    pattern = {"Regex": SPLITS[name]}
    tokenizer["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    seal(folder)
    with record.attack(f"bundle: a tokenizer of {name}") as attack:
        try_bundle(folder, attack, tmp_path, (1, 3), text="x" * 2000)
