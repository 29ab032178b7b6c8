"""Make the ternary vision-language model: `python -m reference.train_ternary`.

Starts from the shipped model, turns every linear layer inside its decoder layers into a ternary one (BitNet b1.58) and
trains with these in place. The loss is the cross-entropy of answers plus the divergence from the shipped model's.
Norms, embeddings and head learn along in full precision; tower and connector stay as they are.

A stopped run goes on where it was. `--smoke` takes five steps.
"""

from __future__ import annotations

import json
import pathlib

import torch
from torch import nn
from torch.nn import functional
from transformers import SmolVLMForConditionalGeneration

from reference.fine_tuning import HERE, START, arguments, fine_tune, start
from reference.lessons import Lesson, load_vlm
from reference.shipping import derive
from reference.ternary import TernaryLinear, checkpoint_tensors
from reference.train_vlm import graded

NAME = "vlm-ternary"
QUANTIZATION = {
    "quant_method": "bitnet",
    "linear_class": "bitlinear",
    "quantization_mode": "offline",
    "modules_to_not_convert": ["model.vision_model", "model.connector", "lm_head"],
}
"""As transformers reads it. Of the two linear classes, `autobitlinear` leaves float tensors as they are stored and so
computes in float16 only; `bitlinear` computes in any number format. It divides by the stored scale."""


def make_ternary(layers: nn.Module) -> None:
    """Replace every linear layer inside `layers` by a ternary one that shares its weight."""
    for name, module in list(layers.named_modules()):
        if isinstance(module, nn.Linear):
            layers.set_submodule(name, TernaryLinear.of(module))


def distillation_loss(logits: torch.Tensor, lesson: Lesson) -> tuple[torch.Tensor, dict[str, float]]:
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
    return loss + divergence, {"kl": float(divergence.detach()), **facts}


def save_ternary(model: SmolVLMForConditionalGeneration, source: pathlib.Path, folder: pathlib.Path) -> None:
    """Write a model with ternary layers as transformers' `bitnet` quantization stores it, packed.

    Args:
        model: Its ternary layers are stored from their weights as they are, in the number format they have.
        source: Checkpoint that it started from.
        folder: Created when missing.
    """
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": QUANTIZATION}
    tensors = checkpoint_tensors(model)
    divisors = {name: 1 / tensor.float() for name, tensor in tensors.items() if name.endswith(".weight_scale")}
    derive(source, folder, config, tensors | divisors)


def main(argv: list[str] | None = None) -> None:
    """Train and write the checkpoint."""
    args = arguments(__doc__, steps=2200, lr=2e-3).parse_args(argv)
    start(args)
    model = load_vlm(START)
    make_ternary(model.model.text_model.layers)
    fine_tune(model, NAME, distillation_loss, args)
    shipped = HERE / "checkpoints" / NAME
    save_ternary(model, START, args.out or (args.work / NAME / "checkpoint" if args.smoke else shipped))


if __name__ == "__main__":
    main()
