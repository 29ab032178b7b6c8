"""Make the ternary vision-language model: `python -m reference.train_ternary`.

Starts from the shipped model, turns every linear layer inside its decoder layers into a ternary one (BitNet b1.58) and
trains with these in place. The loss is the cross-entropy of answers plus the divergence from the shipped model's.
Norms, embeddings and head learn along in full precision; tower and connector stay as they are.

A stopped run goes on where it was. `--smoke` takes five steps.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from reference.bitnet import make_ternary, save_bitnet
from reference.fine_tuning import HERE, START, arguments, fine_tune, start
from reference.lessons import Lesson, load_vlm
from reference.training import graded

NAME = "vlm-ternary"


def distillation_loss(logits: torch.Tensor, lesson: Lesson) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return cross-entropy plus KL(shipped model || student) over answers, and what the log shows.

    Args:
        logits: [N, V] of the student.
        lesson: Holds the answers and the shipped model's logits.
    """
    loss, facts = graded(logits, lesson.batch)
    weights = torch.from_numpy(lesson.batch.weights)
    each = functional.kl_div(
        logits.log_softmax(-1), lesson.logits.float().log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    divergence = (each * weights).sum() / weights.sum()
    return loss + divergence, {"kl": divergence.detach(), **facts}


def main(argv: list[str] | None = None) -> None:
    """Train and write the checkpoint."""
    args = arguments(__doc__, steps=2200, lr=2e-3).parse_args(argv)
    start(args)
    model = load_vlm(START)
    make_ternary(model.model.text_model.layers)
    fine_tune(model, NAME, distillation_loss, args)
    shipped = HERE / "checkpoints" / NAME
    save_bitnet(model, START, args.out or (args.work / NAME / "checkpoint" if args.smoke else shipped))


if __name__ == "__main__":
    main()
