"""What a vision encoder of its own costs per image: `python -m loadtests.scaling.composition BUNDLE`.

One application serves the model twice: with its encoder, and with the encoder as a deployment of its own. One request
is in flight at a time, and the two take turns: first tokens of a new image, and of one that was seen before.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx

from bundle.errors import MachineError, PocketVLMError
from loadtests.images import draw_image, image_part
from loadtests.scaling.nodes import nodes_serving, prepare_environment
from loadtests.stopwatch import Stopwatch, distribution_of
from loadtests.wording import number

WHOLE, APART = "whole", "encoder apart"
_TIMEOUT_S = 300.0
_IMAGE_PX = 512


def measure(bundle: Path, watch: Stopwatch) -> dict[str, dict[str, list[float]]]:
    """Return milliseconds by case and by composition.

    Raises:
        PocketVLMError: The bundle is refused, or a request was not answered.
    """
    with tempfile.TemporaryDirectory(prefix="pocketvlm-composition-") as folder:
        names = {WHOLE: "whole", APART: "apart"}
        copies = [_renamed(bundle, Path(folder) / name, name) for name in names.values()]
        with _both(copies) as url, httpx.Client(timeout=_TIMEOUT_S, trust_env=False) as client:
            seeds = itertools.count()
            new = {how: _asking(client, url, name, lambda: next(seeds)) for how, name in names.items()}
            seen = {how: _asking(client, url, name, lambda: 0) for how, name in names.items()}
            return {"new image": watch.run(new), "image seen before": watch.run(seen)}


def _renamed(bundle: Path, copy: Path, name: str) -> Path:
    """Return a copy of a bundle under another name."""
    shutil.copytree(bundle.resolve(), copy)
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    (copy / "manifest.json").write_text(json.dumps({**manifest, "name": name}), encoding="utf-8")
    return copy


@contextmanager
def _both(copies: Sequence[Path]) -> Iterator[str]:
    prepare_environment()
    from serving.cluster.application import ClusterArgs, application, served_models

    scaling = {"num_cpus": 0.5, "max_replicas": 1}
    ray = {"ingress_replicas": 1, "generator": scaling, "encoder": scaling, "compose": "encoder"}
    engine = {"intra_threads": 1, "max_sequences": 2}
    args = ClusterArgs.model_validate({"bundles": [str(each) for each in copies], "ray": ray, "engine": engine})
    whole, apart = served_models(args)
    with nodes_serving(application([replace(whole, make_host=None), apart], args), num_nodes=1) as url:
        yield url


def _asking(client: httpx.Client, url: str, model: str, seed: Callable[[], int]) -> Callable[[], float]:
    def ask() -> float:
        shown = [image_part(draw_image(seed(), _IMAGE_PX)), {"type": "text", "text": "What is it?"}]
        body = {"model": model, "messages": [{"role": "user", "content": shown}], "max_tokens": 1}
        response = client.post(f"{url}/v1/chat/completions", json=body)
        if response.status_code != httpx.codes.OK:
            raise MachineError(f"{model}: the server answered {response.status_code}: {response.text[:200]}")
        return response.elapsed.total_seconds() * 1e3

    return ask


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the module's command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.scaling.composition",
        description="What a vision encoder of its own costs per image.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="a vision-language bundle")
    parser.add_argument("--repeats", type=int, default=60, help="requests of each kind")
    options = parser.parse_args(arguments)
    try:
        found = measure(options.bundle, Stopwatch(warmup=5, repeats=options.repeats))
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for case, times_ms in found.items():
        told = {how: distribution_of(values) for how, values in times_ms.items()}
        row = ", ".join(
            f"{how} {number(each.p50)} ms (p95 {number(each.p95)}, n {each.n})" for how, each in told.items()
        )
        print(f"{case}: {row}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
