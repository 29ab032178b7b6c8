"""Make the mixture of ternary experts, or one it is compared with: `python -m reference.train_mote [--kind ...]`.

Starts from the shipped model, whose feed-forward layers become frozen shared experts. Routed experts, routers,
attention, norms, embeddings and head learn; tower and connector stay as they are. Every kind sees the same batches in
the same order. A stopped run goes on where it was. `--smoke` takes five steps.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import torch
from transformers import SmolVLMForConditionalGeneration

from reference.fine_tuning import HERE, START, arguments, fine_tune, start
from reference.lessons import Lesson, load_vlm
from reference.mote import ExpertShape, save_mote, upcycle
from reference.shipping import derive
from reference.ternary import checkpoint_tensors
from reference.training import graded

SEED = 20261121
NUM_EXPERTS = 4
_WIDTH = 704  # of the shipped model's feed-forward layers
KINDS = {
    "mote": ExpertShape(NUM_EXPERTS, _WIDTH, "ternary"),
    "narrow": ExpertShape(NUM_EXPERTS, _WIDTH // 8, "float"),  # in float16 they take the bytes of ternary ones
    "wide": ExpertShape(NUM_EXPERTS, _WIDTH, "float"),  # rounded to ternary afterwards: post-training ternary
    "dense": None,  # no experts; the whole decoder goes on learning
}
_BALANCE_SHARE = 0.01  # of the loss, as in arXiv 2101.03961


def train(kind: str, args: argparse.Namespace) -> SmolVLMForConditionalGeneration:
    """Return a trained model of one of `KINDS`."""
    model = load_vlm(START)
    shape = KINDS[kind]
    mixtures = [] if shape is None else upcycle(model, shape, SEED)

    def loss_of(logits: torch.Tensor, lesson: Lesson) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, facts = graded(logits, lesson.batch)
        if not mixtures:
            return loss, facts
        balance = torch.stack([mixture.balance for mixture in mixtures]).mean()
        return loss + _BALANCE_SHARE * balance, {"balance": balance.detach(), **facts}

    fine_tune(model, f"vlm-{kind}", loss_of, args)
    return model


def save(model: SmolVLMForConditionalGeneration, kind: str, folder: pathlib.Path) -> None:
    """Write a trained model's checkpoint to a folder, created when missing."""
    if KINDS[kind] is None:
        derive(START, folder, json.loads((START / "config.json").read_text()), checkpoint_tensors(model))
    else:
        save_mote(model, START, folder)


def main(argv: list[str] | None = None) -> None:
    """Train and write the checkpoint."""
    parser = arguments(__doc__, steps=750, lr=1e-3)
    parser.add_argument("--kind", choices=KINDS, default="mote", help="what is made")
    args = parser.parse_args(argv)
    start(args)
    shipped = HERE / "checkpoints" / "vlm-mote"
    default = shipped if args.kind == "mote" and not args.smoke else args.work / f"vlm-{args.kind}" / "checkpoint"
    save(train(args.kind, args), args.kind, args.out or default)


if __name__ == "__main__":
    main()
