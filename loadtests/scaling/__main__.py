"""Steps of load on a local cluster of several raylets: `python -m loadtests.scaling [BUNDLE] -o FOLDER`.

Without a bundle, replicas answer at a pace and compute nothing: cores that replicas share then hide nothing of how they
come and go.

Writes `scaling.json` and `scaling.png` (replicas and first tokens over time), and ends with 1 where a request was lost,
no replica was added, or those that were added did not go again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bundle.errors import PocketVLMError, SettingsError
from bundle.machine import this_machine
from bundle.scratch import made_folder
from loadtests.plan import LoadPlan
from loadtests.run import run_locust
from loadtests.samples import RequestSample, read_samples
from loadtests.scaling.nodes import ReplicaRecord, serving_nodes
from loadtests.scaling.picture import Replicas, scaling_picture
from loadtests.scaling.steps import Step, parse_steps
from pages.file import write_whole
from pages.png import write_png

_CALM_S = 300.0
"""After the load: until no more replicas run than at the least."""
_PACKAGES = ("ray", "onnxruntime", "locust")


@dataclass(frozen=True)
class Scaled:
    """What became of a run.

    Attributes:
        num_requests: That were sent.
        errors: Of those that failed.
        least: Replicas at the start and at the end.
        most: Replicas at once.
        calmed: No more than the least ran in the end.
        replicas: Over time.
        samples: Of all requests.
        end_s: Of the run, the calm after it included.
    """

    num_requests: int
    errors: list[str]
    least: int
    most: int
    calmed: bool
    replicas: list[Replicas]
    samples: list[RequestSample]
    end_s: float

    @property
    def is_well(self) -> bool:
        """Whether nothing was lost, and replicas came and went."""
        return not self.errors and self.most > self.least and self.calmed


def measure(
    bundle: Path | None, steps: Sequence[Step], nodes: int, most_replicas: int, sequences: int, folder: Path
) -> Scaled:
    """Run the steps on a cluster of its own, and return what became of them.

    Raises:
        PocketVLMError: The bundle is refused, or Locust could not run.
    """
    with serving_nodes(bundle, nodes, _settings(most_replicas, sequences)) as (url, deployment):
        record = ReplicaRecord(deployment)
        record.wait_for(1, _CALM_S)
        length_s = sum(step.duration_s for step in steps)
        plan = LoadPlan(
            users=max(step.users for step in steps), duration_s=length_s, warmup_s=0.0, mix="chat=1", max_tokens=24
        )
        text = ",".join(f"{step.users}x{step.duration_s}" for step in steps)
        locustfile = Path(__file__).with_name("locustfile.py")
        run_locust(url, plan, folder, locustfile, {"--steps": text})
        ended_s, samples = time.perf_counter(), list(read_samples(folder / "requests.jsonl"))
        calmed = record.wait_for(1, _CALM_S)
        record.stop()
    # Locust tells when each request began after its own start; its end is the one moment that both clocks know.
    started_s = ended_s - max(length_s, *(each.ended_s for each in samples))
    replicas = [Replicas(max(each.time_s - started_s, 0.0), each.num_running) for each in record.moments]
    errors = [each.error for each in samples if each.error is not None]
    most, end_s = max(each.num_running for each in replicas), replicas[-1].time_s
    return Scaled(len(samples), errors, 1, most, calmed, replicas, samples, end_s)


def _settings(most_replicas: int, sequences: int) -> dict[str, Any]:
    generator = {
        "num_cpus": 1,
        "min_replicas": 1,
        "max_replicas": most_replicas,
        "target_ongoing_requests": sequences,
        "max_ongoing_requests": sequences,
        "upscale_delay_s": 3,
        "downscale_delay_s": 20,
        "look_back_period_s": 10.1,
    }
    ray = {"ingress_replicas": 1, "ingress_num_cpus": 0.5, "generator": generator, "patience_s": 60}
    engine = {"intra_threads": 1, "max_sequences": sequences}
    return {"engine": engine, "ray": ray, "drain_timeout_s": 60}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the module's command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.scaling",
        description="Steps of load on a local cluster of several raylets.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "bundle", type=Path, nargs="?", help="a vision-language bundle; without one, an engine that only keeps a pace"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for scaling.json and scaling.png")
    parser.add_argument("--steps", default="1x20,6x90,1x20", help="users x seconds, one step after another")
    parser.add_argument("--nodes", type=int, default=3, help="raylets beside the head, two logical CPUs each")
    parser.add_argument("--max-replicas", type=int, default=3, help="of the model")
    parser.add_argument("--max-sequences", type=int, default=2, help="answers that a replica makes at once")
    options = parser.parse_args(arguments)
    try:
        steps = _steps(options.steps)
        made_folder(options.output, "-o")
        scaled = measure(
            options.bundle, steps, options.nodes, options.max_replicas, options.max_sequences, options.output
        )
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    told = {"steps": options.steps, "nodes": options.nodes, "machine": asdict(this_machine(_PACKAGES))}
    text = json.dumps({**told, **asdict(scaled)}, indent=1)
    write_whole(options.output / "scaling.json", text.encode())
    write_png(scaling_picture(steps, scaled.replicas, scaled.samples, scaled.end_s), options.output / "scaling.png")
    print(
        f"{scaled.num_requests} requests, {len(scaled.errors)} lost; {scaled.least} to {scaled.most} replicas, "
        f"{'back' if scaled.calmed else 'not back'} at the end; {options.output / 'scaling.png'}"
    )
    return 0 if scaled.is_well else 1


def _steps(text: str) -> tuple[Step, ...]:
    try:
        return parse_steps(text)
    except ValueError as error:
        raise SettingsError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
