"""The shipped models in int8, as the attacks are tried on them; made once and kept in .demo/attacks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from victim import ROOT

from commands.shipped import CHECKPOINTS, is_current

FOLDER = ROOT / ".demo" / "attacks"


def int8_bundle(name: str) -> Path:
    """Return the folder of a shipped model in int8."""
    folder = FOLDER / f"{name}-int8"
    if not is_current(folder, name):
        shutil.rmtree(folder, ignore_errors=True)
        plain = plain_bundle(name)
        _command("quantize", str(plain), "-o", str(folder), "--weights", "int8")
    return folder


def plain_bundle(name: str) -> Path:
    """Return the folder of a shipped model in fp32."""
    folder = FOLDER / name
    if not is_current(folder, name):
        shutil.rmtree(folder, ignore_errors=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        _command("export", str(CHECKPOINTS[name]), "-o", str(folder))
    return folder


def endless_bundle() -> Path:
    """Return the vision-language model in int8, named "long", whose answers end only by their `max_tokens`."""
    folder, source = FOLDER / "long", int8_bundle("vlm")
    if not is_current(folder, "vlm"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        manifest.update(name="long", eos_token_ids=[])
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def attacked_bundles() -> list[Path]:
    """Return what the server under attack serves: "long" and "clip-int8"."""
    return [endless_bundle(), int8_bundle("clip")]


def _command(*arguments: str) -> None:
    line: Sequence[str] = [sys.executable, "-m", "pocketvlm", *arguments]
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
