"""Every command with every wrong kind of path: refused in one line, with an exit code, and nothing left behind."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
"""What Git leaves in a clone without Git LFS in the place of a large file."""

READERS = {
    "inspect": ("inspect", "{path}"),
    "run": ("run", "{path}", "hi"),
    "embed": ("embed", "{path}", "--text", "hi"),
    "quantize": ("quantize", "{path}", "-o", "{out}", "--weights", "int8", "--no-tune"),
    "report": ("report", "{path}", "-o", "{out}"),
    "bench": ("bench", "{path}", "--repeats", "3"),
    "serve": ("serve", "{path}", "--port", "0"),
    "deploy": ("deploy", "{path}", "--port", "0"),
    "export": ("export", "{path}", "-o", "{out}"),
}
"""Command -> how it is called on something that it reads."""

FILES = {
    "run --image": ("run", "{vlm}", "hi", "--image", "{path}"),
    "embed --image": ("embed", "{clip}", "--image", "{path}"),
    "quantize --eval": ("quantize", "{vlm}", "-o", "{out}", "--weights", "int8", "--no-tune", "--eval", "{path}"),
    "quantize --calibration": (
        *("quantize", "{vlm}", "-o", "{out}", "--weights", "int8", "--no-tune"),
        *("--calibration", "{path}"),
    ),
    "serve --config": ("serve", "{vlm}", "--port", "0", "--config", "{path}"),
    "deploy --config": ("deploy", "{vlm}", "--port", "0", "--config", "{path}"),
    "export --decoder-gguf": ("export", "{checkpoint}", "-o", "{out}", "--decoder-gguf", "{path}"),
    "export --keep-quantized": (
        *("export", "{checkpoint}", "-o", "{out}", "--keep-quantized"),
        *("--decoder-gguf", "{path}"),
    ),
    "report --rivals": ("report", "{variant}", "-o", "{out}", "--rivals", "{path}"),
}
"""Option -> how a command is called with a file."""

WRITERS = {
    "export": ("export", "{checkpoint}", "-o", "{path}"),
    "quantize": ("quantize", "{clip}", "-o", "{path}", "--weights", "int8", "--no-tune", "--no-evaluate"),
    "report": ("report", "{variant}", "-o", "{path}", "--no-speed"),
    "loadtest": ("loadtest", "{url}", "--duration-s", "1", "-o", "{path}"),
    "demo": ("demo", "--folder", "{path}"),
}
"""Command -> how it is told where to write."""


@pytest.fixture(scope="module")
def variant(clip_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from quant.planning.draft import Options
    from quant.quantizer import quantize_bundle

    folder = tmp_path_factory.mktemp("variant") / "int8"
    quantize_bundle(clip_bundle, folder, weights="int8", options=Options(tune=False))
    return folder


@pytest.fixture
def names(
    tmp_path: Path, smolvlm_bundle: Path, clip_bundle: Path, smolvlm_checkpoint: Path, variant: Path
) -> dict[str, str]:
    found = {"vlm": smolvlm_bundle, "clip": clip_bundle, "checkpoint": smolvlm_checkpoint, "variant": variant}
    return {name: str(path) for name, path in found.items()} | {"out": str(tmp_path / "written" / "out")}


@pytest.fixture
def call(pocketvlm: Callable, names: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Calls a command that shall refuse, and returns its one line; nothing may be left where it writes."""

    def refused(arguments: tuple[str, ...], **more: object) -> str:
        done = pocketvlm(*(argument.format(**names, **more) for argument in arguments))
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, done.stderr
        assert done.stderr.endswith(lines[0] + "\n")
        assert len(lines[0]) < 1000
        return lines[0]

    yield refused
    left = tmp_path / "written"
    assert not left.exists() or list(left.iterdir()) == []


def placed(kind: str, folder: Path, names: dict[str, str]) -> Path:
    """Put something of a wrong kind at a path, and return that."""
    path = folder / "given"
    if kind == "a file":
        path.write_text("no bundle")
    elif kind == "an empty folder":
        path.mkdir()
    elif kind == "a link to nothing":
        path.symlink_to(folder / "gone")
    elif kind == "a Git LFS pointer":
        path.write_text(POINTER)
    elif kind == "an empty file":
        path.touch()
    elif kind == "bytes":
        path.write_bytes(bytes(range(256)) * 20)
    elif kind == "a name that is too long":
        return folder / ("a" * 300)
    elif kind in ("a bundle", "a checkpoint"):
        return Path(names["vlm" if kind == "a bundle" else "checkpoint"])
    else:
        assert kind == "nothing"
    return path


@pytest.mark.parametrize(
    "kind",
    ["nothing", "a file", "an empty folder", "a link to nothing", "a Git LFS pointer", "a name that is too long"],
)
@pytest.mark.parametrize("command", READERS)
def test_what_is_no_bundle_or_checkpoint_is_refused(
    call: Callable[..., str], names: dict[str, str], command: str, kind: str, tmp_path: Path
) -> None:
    path = placed(kind, tmp_path, names)
    assert str(path) in call(READERS[command], path=path)


@pytest.mark.parametrize("command", sorted(set(READERS) - {"export"}))
def test_a_checkpoint_is_no_bundle(call: Callable[..., str], names: dict[str, str], command: str) -> None:
    line = call(READERS[command], path=names["checkpoint"])
    assert f"{names['checkpoint']} is not a bundle" in line
    assert "pocketvlm export" in line


def test_a_bundle_is_no_checkpoint(call: Callable[..., str], names: dict[str, str]) -> None:
    assert names["vlm"] in call(READERS["export"], path=names["vlm"])


@pytest.mark.parametrize("command", sorted(set(READERS) - {"export", "report"}))
@pytest.mark.parametrize("file", ["manifest.json", "tokenizer.json", "vision_encoder.onnx.data", "vision_encoder.onnx"])
def test_a_bundle_whose_file_is_a_pointer_is_refused(
    call: Callable[..., str], names: dict[str, str], command: str, file: str, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(names["clip" if command == "embed" else "vlm"], tmp_path / "cloned"))
    (bundle / file).write_text(POINTER)
    assert f"{bundle / file}" in call(READERS[command], path=bundle)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "processor_config.json"])
def test_a_checkpoint_whose_file_is_a_pointer_is_refused(
    call: Callable[..., str], names: dict[str, str], file: str, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(names["checkpoint"], tmp_path / "cloned"))
    assert (checkpoint / file).exists()
    (checkpoint / file).write_text(POINTER)
    assert file in call(READERS["export"], path=checkpoint)


@pytest.mark.parametrize(
    "kind",
    [
        *("nothing", "an empty folder", "an empty file", "a link to nothing", "a Git LFS pointer", "bytes"),
        "a name that is too long",
    ],
)
@pytest.mark.parametrize("option", FILES)
def test_a_file_of_another_kind_is_refused(
    call: Callable[..., str], names: dict[str, str], option: str, kind: str, tmp_path: Path
) -> None:
    if option.endswith("--config") and kind == "an empty file":
        pytest.skip("an empty file is TOML that sets nothing")
    path = placed(kind, tmp_path, names)
    line = call(FILES[option], path=path)
    assert str(path)[:90] in line
    if kind == "a Git LFS pointer" and option.endswith("--image"):
        assert "is a Git LFS pointer" in line


@pytest.mark.parametrize("place", ["file/below", "file", "/proc/written", "long"])
@pytest.mark.parametrize("command", WRITERS)
def test_a_place_that_cannot_be_written_is_told(
    call: Callable[..., str], command: str, place: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    if command == "report" and place == "file":
        pytest.skip("a page that exists is replaced")
    path = tmp_path / ("a" * 300 if place == "long" else place)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        line = call(WRITERS[command], path=path, url=f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert f"{path} cannot be written: " in line or f"{path} exists" in line or place == "long"
    assert (tmp_path / "file").read_text() == "x"


WITHOUT_ROOM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({num_bytes}, {num_bytes}))
import pocketvlm
pocketvlm.main()
"""
TOLD_TO_END_BEFORE_THE_LAST_STEP = """
import os, signal, sys
import {module} as module
module.{step} = lambda *arguments: os.kill(os.getpid(), signal.{signal})
import pocketvlm
pocketvlm.main()
"""


@pytest.fixture
def apart(names: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Calls a command in a process of its own that a program prepares."""

    def run(program: str, arguments: tuple[str, ...], **more: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *(argument.format(**names, **more) for argument in arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)

    return run


@pytest.mark.parametrize(
    ("command", "num_bytes"),
    [("export", 0), ("export", 2000), ("export", 20_000), ("quantize", 2000), ("report", 2000)],
)
def test_no_room_is_told_in_one_line_and_nothing_is_left(
    apart: Callable[..., subprocess.CompletedProcess[str]], command: str, num_bytes: int, tmp_path: Path
) -> None:
    """A limit on the size of files stands for a disk that is full: what is written meets either in the same places."""
    written = tmp_path / "written"
    done = apart(WITHOUT_ROOM.format(num_bytes=num_bytes), WRITERS[command], path=written / "out")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert f"{written / 'out'} cannot be written" in line
    assert not written.exists() or list(written.iterdir()) == []


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
@pytest.mark.parametrize(
    ("command", "module", "step"),
    [
        ("export", "bundle.directory", "_put_in_place"),
        ("quantize", "bundle.directory", "_put_in_place"),
        ("report", "os", "replace"),
    ],
)
def test_a_signal_leaves_nothing_half_written(
    apart: Callable[..., subprocess.CompletedProcess[str]],
    command: str,
    module: str,
    step: str,
    name: str,
    code: int,
    tmp_path: Path,
) -> None:
    written = tmp_path / "written"
    program = TOLD_TO_END_BEFORE_THE_LAST_STEP.format(module=module, step=step, signal=name)
    done = apart(program, WRITERS[command], path=written / "out")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert list(written.iterdir()) == []
