"""Another system's figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bundle.machine import Machine
from bundle.report import EvaluationFacts, Replies, TaskAccuracy, TeacherForced
from quant.comparison.rivals import Rival, Rivals, Speed, SpeedFacts
from runtime.turns import Quartiles


def around(value: float) -> Quartiles:
    return Quartiles(0.9 * value, value, 1.1 * value)


def rival(name: str, num_bytes: int, kl_mean: float, ratio: float) -> Rival:
    speed = Speed(per_second=around(50 * ratio), ratio=around(ratio), processor_ratio=around(ratio))
    forced = TeacherForced(
        num_samples=200,
        num_tokens=600,
        kl_mean=kl_mean,
        kl_interval=(0.7 * kl_mean, 1.3 * kl_mean),
        kl_p99=0.7,
        top1_agreement=0.876,
        delta_nll=0.004,
    )
    right = TaskAccuracy(n=200, fp32=0.5, quantized=0.5, loss_points=0.0, loss_low=0.0, loss_high=1.5)
    return Rival(
        name=name,
        weight_bytes=num_bytes,
        file_bytes=num_bytes + 5_000,
        teacher_forced=forced,
        replies=Replies(n=200, identical=0.61, first_divergence=2.5),
        tasks={"all": right},
        prefill=speed,
        decode=speed,
    )


@pytest.fixture(scope="session")
def rivals_of() -> Callable[..., Rivals]:
    """Write figures of a system called other.cpp, of files of (name, bytes, KL, times the speed of fp32)."""

    def write(
        parent_sha256: str,
        *files: tuple[str, int, float, float],
        threads: int = 1,
        source: str = "cats.jsonl",
        num_samples: int = 200,
    ) -> Rivals:
        return Rivals(
            system="other.cpp",
            version="1.2.3",
            parent="tiny-smolvlm",
            parent_sha256=parent_sha256,
            evaluation=EvaluationFacts(source=source, num_samples=num_samples),
            speed=SpeedFacts(
                threads=threads,
                prompt_tokens=512,
                cached_tokens=64,
                steps=8,
                rounds=15,
                parent_prefill=around(700),
                parent_decode=around(50),
            ),
            parity=rival("F32", 900_000, 2e-6, 1.05),
            rivals=tuple(rival(*file) for file in files),
            machine=Machine("Some CPU", 4, 8 << 30, 32 << 20, "Linux", {}),
        )

    return write
