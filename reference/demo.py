"""The whole path on the shipped models: export, compress, serve, and ask over HTTP.

Everything runs as a user would run it: the `pocketvlm` command in processes of its own, and HTTP on the loopback.
"""

from __future__ import annotations

import base64
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from bundle.directory import read_manifest
from bundle.errors import PocketVLMError
from reference.bundles import CHECKPOINTS, is_current

SAMPLES = Path(__file__).resolve().parent / "samples"
QUESTIONS = (
    ("scene.png", "describe the image."),
    ("relation.png", "what colour is the circle?"),
    ("text.png", "what text is written?"),
    ("digit.png", "what digit is shown?"),
)
LABELS = ("a circle", "a square", "a triangle", "a star")
SAMPLES_PER_TASK = 20
"""Held-out questions per task when a variant is measured: enough to see a broken one; the README's figures use 200."""
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class StreamedAnswer:
    """One streamed chat answer as the client saw it, from sending the request.

    Attributes:
        text: The whole answer.
        num_tokens: As the server counted them.
        first_token_ms: Until the first piece of text.
        total_ms: Until the end.
    """

    text: str
    num_tokens: int
    first_token_ms: float
    total_ms: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens over the whole time, the image's encoding included: answers here are too short to leave it out."""
        return self.num_tokens / self.total_ms * 1e3


def run_demo(folder: Path, *, keep: bool, console: Console) -> None:
    """Make the bundles in `folder`, serve the INT8 ones, ask, and stop (or leave the server with `keep`).

    Raises:
        PocketVLMError: A step failed; its own output is on the terminal.
    """
    started_s = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    for name in CHECKPOINTS:
        _make_variants(folder, name, console)
    _print_variants(folder, console)
    bundles = [folder / f"{name}-int8" for name in CHECKPOINTS]
    with _server(bundles, keep=keep, console=console) as (process, url):
        _ask_all(url, console)
        console.print(f"\nDone in {time.perf_counter() - started_s:.0f} s.")
        if keep:
            console.print(
                f"The server keeps running at {url} (process {process.pid}; stop it with: kill {process.pid})"
            )
    _print_next(folder, console)


def _make_variants(folder: Path, name: str, console: Console) -> None:
    parent = folder / name
    if not is_current(parent, name):
        console.print(f"[bold]export[/bold] {CHECKPOINTS[name]}")
        _command("export", str(CHECKPOINTS[name]), "-o", str(parent), "--name", f"pocketvlm-{name}", "--overwrite")
    for scheme in ("int8", "int4"):
        variant = folder / f"{name}-{scheme}"
        if not is_current(variant, name):
            console.print(f"[bold]quantize[/bold] {name} to {scheme}, and measure it on held-out scenes")
            _command(
                *("quantize", str(parent), "-o", str(variant), "--weights", scheme, "--samples", str(SAMPLES_PER_TASK)),
                "--overwrite",
                may_miss=True,
            )


def _command(*arguments: str, may_miss: bool = False) -> None:
    """Run a subcommand; a missed quality gate (exit code 3) is reported, not fatal, where `may_miss` is set."""
    done = subprocess.run([sys.executable, "-m", "pocketvlm", *arguments], check=False)
    if done.returncode and not (may_miss and done.returncode == 3):
        raise PocketVLMError(f"pocketvlm {arguments[0]} failed with exit code {done.returncode}; see above")


def _print_variants(folder: Path, console: Console) -> None:
    table = Table("bundle", "weights", "held-out answers right", "of fp32", "gates", title="What each variant costs")
    for name in CHECKPOINTS:
        for suffix in ("", "-int8", "-int4"):
            table.add_row(f"{name}{suffix}", *_costs(folder / f"{name}{suffix}"))
    console.print(table)


def _costs(bundle: Path) -> tuple[str, str, str, str]:
    manifest = read_manifest(bundle)
    weights = f"{manifest.weight_bytes / 1e6:.1f} MB"
    if not manifest.gates:
        return weights, "", "", ""
    everything = json.loads((bundle / "report.json").read_text(encoding="utf-8"))["tasks"]["all"]
    passed = f"{sum(gate.passed for gate in manifest.gates)} of {len(manifest.gates)} passed"
    return weights, f"{everything['quantized']:.1%} of {everything['n']}", f"{everything['fp32']:.1%}", passed


@contextmanager
def _server(bundles: list[Path], *, keep: bool, console: Console) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    log = bundles[0].parent / "server.log"
    arguments = [sys.executable, "-m", "pocketvlm", "serve", *map(str, bundles), "--port", str(port)]
    # Every variant made here is served, a missed gate included: the table above has shown it.
    arguments.append("--allow-failed-gate")
    console.print(f"[bold]serve[/bold] {' '.join(b.name for b in bundles)} at {url} (log: {log})")
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, start_new_session=keep)
    kept = False
    try:
        _wait_until_ready(process, url, log)
        yield process, url
        kept = keep
    finally:
        if not kept:
            _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise PocketVLMError(f"the server ended with exit code {process.returncode}; its log is {log}")
        try:
            if httpx.get(f"{url}/health/ready", timeout=1.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise PocketVLMError(f"the server was not ready within {READY_TIMEOUT_S:.0f} s; its log is {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ask_all(url: str, console: Console) -> None:
    with httpx.Client(base_url=url, timeout=60.0) as http:
        cards = http.get("/v1/models").raise_for_status().json()["data"]
        by_task = {card["task"]: card["id"] for card in cards}
        for sample, question in QUESTIONS:
            answer = _stream_answer(http, by_task["image-text-to-text"], SAMPLES / sample, question)
            console.print(f"[bold]{sample}[/bold] {question} [green]{answer.text}[/green]")
            console.print(
                f"  [dim]first token {answer.first_token_ms:.0f} ms, {answer.num_tokens} tokens in "
                f"{answer.total_ms:.0f} ms ({answer.tokens_per_s:.0f} tokens/s)[/dim]"
            )
        _embed(http, by_task["dual-encoder"], console)
        _classify(http, by_task["dual-encoder"], console)


def _image_part(path: Path) -> dict[str, object]:
    encoded = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}


def _stream_answer(http: httpx.Client, model: str, image: Path, question: str) -> StreamedAnswer:
    content = [_image_part(image), {"type": "text", "text": question}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 64,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, num_tokens, first_ms = "", 0, float("nan")
    started_s = time.perf_counter()
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.is_error:
            raise PocketVLMError(f"the server answered {response.status_code}: {response.read().decode()}")
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            for choice in event.get("choices", ()):
                text += choice["delta"].get("content") or ""
                if text and math.isnan(first_ms):
                    first_ms = (time.perf_counter() - started_s) * 1e3
            if event.get("usage"):
                num_tokens = event["usage"]["completion_tokens"]
    return StreamedAnswer(text.strip(), num_tokens, first_ms, (time.perf_counter() - started_s) * 1e3)


def _embed(http: httpx.Client, model: str, console: Console) -> None:
    texts = ["a red circle", "a blue square"]
    inputs = [_image_part(SAMPLES / "relation.png"), *({"type": "text", "text": text} for text in texts)]
    body = {"model": model, "input": inputs, "encoding_format": "float"}
    rows = [row["embedding"] for row in http.post("/v1/embeddings", json=body).raise_for_status().json()["data"]]
    image = rows[0]
    cosines = [sum(a * b for a, b in zip(image, row, strict=True)) for row in rows[1:]]
    shown = ", ".join(f"{text!r} {cosine:.3f}" for text, cosine in zip(texts, cosines, strict=True))
    console.print(f"[bold]embeddings[/bold] relation.png, {len(image)} numbers; cosine to {shown}")


def _classify(http: httpx.Client, model: str, console: Console) -> None:
    body = {"model": model, "images": [_image_part(SAMPLES / "relation.png")], "labels": list(LABELS)}
    data = http.post("/v1/classify", json=body).raise_for_status().json()["data"]
    shown = ", ".join(f"{item['label']} {item['score']:.3f}" for item in data[0]["labels"])
    console.print(f"[bold]classify[/bold] relation.png: {shown}")


def _print_next(folder: Path, console: Console) -> None:
    bundle = os.path.relpath(folder / "vlm-int8")
    console.print("\nWhat to run next:")
    console.print("  .venv/bin/pocketvlm serve                       serve the shipped models on port 8000")
    console.print(f'  .venv/bin/pocketvlm run {bundle} --image reference/samples/scene.png "describe the image."')
    console.print(f"  .venv/bin/pocketvlm inspect {bundle}       what the variant costs")
    console.print("  .venv/bin/pocketvlm export HuggingFaceTB/SmolVLM-256M-Instruct -o smolvlm      your own model")
