"""The whole path on the shipped models: export, compress, serve, and ask over HTTP.

Everything runs as a user would run it: the `pocketvlm` command in processes of its own, and HTTP on the loopback.
"""

from __future__ import annotations

import base64
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from bundle.directory import read_manifest
from bundle.errors import PocketVLMError
from commands.shipped import CHECKPOINTS, SERVED, WHAT_TO_ASK, is_current
from commands.terminal import EXIT_MISSED
from serving.process import run_process, running_server

SAMPLES = Path(__file__).resolve().parents[1] / "reference" / "samples"
QUESTIONS = (
    ("scene.png", "How many shapes are there?"),
    ("scene.png", "What color is the star?"),
    ("relation.png", "Is the circle left or right of the star?"),
    ("relation.png", "Describe this picture."),
    ("text.png", "What does the text say?"),
    ("digit.png", "What digit is this?"),
)
LABELS = ("a circle", "a square", "a triangle", "a star")


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


def run_demo(folder: Path, *, samples: int, keep: bool, console: Console) -> None:
    """Make the bundles in `folder`, serve the INT8 ones, ask, and stop (or leave the server with `keep`).

    Args:
        folder: Is there; keeps bundles and the server's log, and what is current in it is used again.
        samples: Held-out questions per task on which a variant is measured.
        keep: Leave the server running.
        console: Gets what a user sees.

    Raises:
        PocketVLMError: A step failed; its own output is on the terminal.
    """
    started_s = time.perf_counter()
    for name in SERVED:
        _make_variants(folder, name, samples, console)
    _print_variants(folder, console)
    bundles = [folder / f"{name}-int8" for name in SERVED]
    log = folder / "server.log"
    console.print(f"[bold]serve[/bold] {' '.join(bundle.name for bundle in bundles)} (log: {log})")
    # A variant that missed a gate is served too: the table above has shown what it costs.
    arguments = [*map(str, bundles), "--allow-ungated"]
    with running_server("serve", arguments, log, keep=keep) as server:
        _ask_all(server.url, console)
        console.print(f"\nDone in {time.perf_counter() - started_s:.0f} s.")
        if keep:
            console.print(f"The server keeps running; open {server.url} in a browser. Stop it with: kill {server.pid}")
    _print_next(folder, console)


def _make_variants(folder: Path, name: str, samples: int, console: Console) -> None:
    parent = folder / name
    if not is_current(parent, name):
        console.print(f"[bold]export[/bold] {CHECKPOINTS[name]}")
        run_command("export", str(CHECKPOINTS[name]), "-o", str(parent), "--name", f"pocketvlm-{name}", "--overwrite")
    for scheme in ("int8", "int4"):
        variant = folder / f"{name}-{scheme}"
        if not is_current(variant, name):
            console.print(f"[bold]quantize[/bold] {name} to {scheme}, and measure it on held-out scenes")
            run_command(
                *("quantize", str(parent), "-o", str(variant), "--weights", scheme, "--samples", str(samples)),
                "--overwrite",
                may_miss=True,
            )


def run_command(*arguments: str, may_miss: bool = False) -> None:
    """Run a subcommand; a missed quality gate is reported, not fatal, where `may_miss` is set."""
    code = run_process([sys.executable, "-m", "pocketvlm", *arguments])
    if code and not (may_miss and code == EXIT_MISSED):
        raise PocketVLMError(f"pocketvlm {arguments[0]} failed with exit code {code}; see above")


def _print_variants(folder: Path, console: Console) -> None:
    table = Table(
        "bundle", "weights", "held-out answers right", "fp32 parent", "gates", title="What each variant costs"
    )
    for name in SERVED:
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


def _ask_all(url: str, console: Console) -> None:
    with httpx.Client(base_url=url, timeout=60.0) as http:
        cards = http.get("/v1/models").raise_for_status().json()["data"]
        by_task = {card["task"]: card["id"] for card in cards}
        for sample, question in QUESTIONS:
            answer = stream_answer(http, by_task["image-text-to-text"], SAMPLES / sample, question)
            console.print(f"[bold]{sample}[/bold] {question} [green]{answer.text}[/green]")
            console.print(
                f"  [dim]first token {answer.first_token_ms:.0f} ms, {answer.num_tokens} tokens in "
                f"{answer.total_ms:.0f} ms ({answer.tokens_per_s:.0f} tokens/s)[/dim]"
            )
        _embed(http, by_task["dual-encoder"], console)
        _classify(http, by_task["dual-encoder"], console)


def image_part(path: Path) -> dict[str, object]:
    """Return a PNG as a part of a message."""
    encoded = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}


def stream_answer(http: httpx.Client, model: str, image: Path | None, question: str) -> StreamedAnswer:
    """Return the answer to a question, about an image if there is one.

    Raises:
        PocketVLMError: The server refused it.
    """
    content = [*([] if image is None else [image_part(image)]), {"type": "text", "text": question}]
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
    inputs = [image_part(SAMPLES / "relation.png"), *({"type": "text", "text": text} for text in texts)]
    body = {"model": model, "input": inputs, "encoding_format": "float"}
    rows = [row["embedding"] for row in http.post("/v1/embeddings", json=body).raise_for_status().json()["data"]]
    image = rows[0]
    cosines = [sum(a * b for a, b in zip(image, row, strict=True)) for row in rows[1:]]
    shown = ", ".join(f"{text!r} {cosine:.3f}" for text, cosine in zip(texts, cosines, strict=True))
    console.print(f"[bold]embeddings[/bold] relation.png, {len(image)} numbers; cosine to {shown}")


def _classify(http: httpx.Client, model: str, console: Console) -> None:
    body = {"model": model, "images": [image_part(SAMPLES / "relation.png")], "labels": list(LABELS)}
    data = http.post("/v1/classify", json=body).raise_for_status().json()["data"]
    shown = ", ".join(f"{item['label']} {item['score']:.3f}" for item in data[0]["labels"])
    console.print(f"[bold]classify[/bold] relation.png: {shown}")


def _print_next(folder: Path, console: Console) -> None:
    bundle = os.path.relpath(folder / "vlm-wide-int8")
    lines = (
        ("serve", "", "the shipped models, on port 8000"),
        ("serve", "--real", "a language model that talks instead, SmolLM2-135M (fetches 93 MB, once)"),
        ("run", f'{bundle} --image reference/samples/text.png "What does the text say?"', "one answer, no server"),
        ("inspect", bundle, "what a variant holds and costs"),
        ("export", "HuggingFaceTB/SmolVLM-256M-Instruct -o smolvlm", "your own model"),
    )
    console.print(f"\n{WHAT_TO_ASK}", markup=False)
    console.print("\nWhat to run next:")
    for command, rest, meaning in lines:
        console.print(f"  [dim]# {meaning}[/dim]\n  .venv/bin/pocketvlm {command} {rest}", soft_wrap=True)
