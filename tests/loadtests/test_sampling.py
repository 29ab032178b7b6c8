import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from loadtests.sampling import CASES, _plain_choice
from serving.engine.sampling.sampler import Sampler
from serving.engine.sampling.state import SamplingState
from serving.protocol import SamplingParams


def test_the_command_measures_every_case_both_ways(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.sampling", "--batch", "2", "--vocab", "300", "--repeats", "3"]
        + ["--json", str(file)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert [*CASES, "top_p 0.9, penalties, 5 logprobs, a structure"] == list(found)
    assert all(cost[way]["median"] > 0 for cost in found.values() for way in cost)
    assert "sorted rows" in done.stdout


def test_what_is_compared_draws_from_the_same_tokens() -> None:
    rng = np.random.default_rng(0)
    params = SamplingParams(temperature=0.7, top_p=0.5, seed=1)
    drawn: dict[str, set[int]] = {"plain": set(), "sampler": set()}
    logits = rng.normal(scale=3, size=400).astype(np.float32)
    plain, ours = SamplingState(params), SamplingState(params)
    for _ in range(400):
        drawn["plain"].add(_plain_choice(logits, plain))
        plain.take(0)
        [choice] = Sampler().choose(logits[None].copy(), [ours])
        drawn["sampler"].add(choice.token_id)
    assert drawn["plain"] == drawn["sampler"]
