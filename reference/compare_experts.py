"""Compare the mixture of ternary experts with what costs as much: `python -m reference.compare_experts`.

Marks held-out questions, the same for every model, and prints a Markdown table: the routed experts' bytes, accuracy
over all tasks, its difference from the mixture of ternary experts with a 95 % interval by paired bootstrap, and the
likelihood of the answers. Needs what `train_mote --kind narrow`, `wide` and `dense` leave in the work folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, SmolVLMForConditionalGeneration

from reference.evaluate import CHECKPOINTS
from reference.fine_tuning import HERE
from reference.marking import Mark, Marker
from reference.mote import Expert, load_mote
from reference.scenes import TASKS, held_out
from reference.ternary import absmean, nearest_ternary

_BLOCK = 128
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Compared:
    """A row of the table.

    Attributes:
        expert_bytes: What the routed experts' weights take, scales left out.
        accuracy: Mean over tasks of the share answered rightly, 0 to 1.
        difference: From the accuracy of the mixture of ternary experts.
        interval_95: Of the difference.
        nll: Mean over tasks of the negative log-likelihood of a right answer, in nats.
        tasks: Accuracy by task.
    """

    expert_bytes: int
    accuracy: float
    difference: float
    interval_95: tuple[float, float]
    nll: float
    tasks: dict[str, float]

    def line(self, name: str) -> str:
        """Return the row in Markdown."""
        low, high = (100 * bound for bound in self.interval_95)
        return (
            f"| {name} | {self.expert_bytes / 1e6:.2f} MB | {self.accuracy:.2%} "
            f"| {100 * self.difference:+.2f} ({low:+.2f} to {high:+.2f}) | {self.nll:.4f} |"
        )


def absmean_ternary(weight: torch.Tensor) -> torch.Tensor:
    """Return a matrix rounded to ternary as BitNet b1.58 does, one scale for all of it."""
    codes, scale = absmean(weight)
    return codes * scale


def rounded(
    model: SmolVLMForConditionalGeneration, rounding: Callable[[torch.Tensor], torch.Tensor]
) -> SmolVLMForConditionalGeneration:
    """Return the model with the weights of its routed experts rounded in place; activations stay float."""
    for expert in model.modules():
        if isinstance(expert, Expert):
            for layer in expert.children():
                layer.weight.data = rounding(layer.weight.data)
    return model


def models(checkpoints: pathlib.Path, work: pathlib.Path) -> Iterator[tuple[str, str, SmolVLMForConditionalGeneration]]:
    """Yield name, the routed experts' bits, and each model, in the order of the table."""

    def dense(folder: pathlib.Path) -> SmolVLMForConditionalGeneration:
        return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    wide = work / "vlm-wide" / "checkpoint"
    mixture = checkpoints / "vlm-mote"
    yield "mixture of ternary experts", "2", load_mote(mixture)
    yield "its routed experts taken out", "", rounded(load_mote(mixture), torch.zeros_like)
    yield "float experts, an eighth as wide", "16", load_mote(work / "vlm-narrow" / "checkpoint")
    yield (
        f"full-width experts rounded after training, nearest in blocks of {_BLOCK}",
        "2",
        rounded(load_mote(wide), lambda weight: nearest_ternary(weight, _BLOCK)),
    )
    yield "full-width experts rounded after training, absmean", "2", rounded(load_mote(wide), absmean_ternary)
    yield "full-width float experts (8 times the bytes)", "16", load_mote(wide)
    yield "no experts, as shipped", "", dense(checkpoints / "vlm")
    yield "no experts, trained as long", "", dense(work / "vlm-dense" / "checkpoint")


def expert_bytes(model: SmolVLMForConditionalGeneration, bits: str) -> int:
    """Return what the routed experts' weights take, scales left out."""
    matrices = [layer.weight for e in model.modules() if isinstance(e, Expert) for layer in e.children()]
    return sum(matrix.numel() for matrix in matrices) * int(bits or 0) // 8


def task_means(marks: list[Mark], value: Callable[[Mark], float]) -> dict[str, float]:
    """Return the mean of something by task."""
    return {task: float(np.mean([value(m) for m in marks if m.task == task])) for task in TASKS}


def interval(marks: list[Mark], others: list[Mark], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the difference in accuracy, by resampling questions within tasks, pairs together.

    Args:
        marks: Of one model.
        others: Of another one, whose accuracy is subtracted, on the same questions.
        seed: Of the resampling.
    """
    random = np.random.default_rng(seed)
    means = np.zeros(_RESAMPLES)
    for task in TASKS:
        pairs = [(a, b) for a, b in zip(marks, others, strict=True) if a.task == task]
        differences = np.array([float(a.is_right) - float(b.is_right) for a, b in pairs])
        chosen = random.integers(len(differences), size=(_RESAMPLES, len(differences)))
        means += differences[chosen].mean(1) / len(TASKS)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def compared(marks: list[Mark], first: list[Mark], num_bytes: int) -> Compared:
    """Return a model's row.

    Args:
        marks: Of the model.
        first: Of the mixture of ternary experts, on the same questions.
        num_bytes: Of the model's routed experts.
    """
    accuracies, own = (task_means(m, lambda mark: mark.is_right) for m in (marks, first))
    accuracy = float(np.mean(list(accuracies.values())))
    return Compared(
        expert_bytes=num_bytes,
        accuracy=accuracy,
        difference=accuracy - float(np.mean(list(own.values()))),
        interval_95=interval(marks, first),
        nll=float(np.mean(list(task_means(marks, lambda mark: mark.nll).values()))),
        tasks=accuracies,
    )


def main(argv: list[str] | None = None) -> None:
    """Print the table, and write the numbers as JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoints", type=pathlib.Path, default=CHECKPOINTS, help="folder of vlm/ and vlm-mote/")
    parser.add_argument("--work", type=pathlib.Path, default=HERE / ".work", help="folder of the others")
    parser.add_argument("--n", type=int, default=200, help="examples a task")
    parser.add_argument("--seed", type=int, default=0, help="which held-out set, 0 to 255")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=pathlib.Path, help="file to write")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    marker = Marker(AutoProcessor.from_pretrained(args.checkpoints / "vlm"))
    examples = [example for task in TASKS for example in held_out(task, args.n, args.seed)]
    print("| model | routed experts | right | difference in points (95 %) | NLL an answer |\n|---|---|---|---|---|")
    rows: dict[str, object] = {}
    first: list[Mark] = []
    for name, bits, model in models(args.checkpoints, args.work):
        marks = marker.marks(model, examples)
        first = first or marks
        found = compared(marks, first, expert_bytes(model, bits))
        print(found.line(name), flush=True)
        rows[name] = dataclasses.asdict(found)
    if args.json:
        args.json.write_text(json.dumps({"n": args.n, "seed": args.seed, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
