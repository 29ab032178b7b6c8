"""Make the ternary vision-language model: `python -m reference.train_ternary`.

Starts from the shipped model, turns every linear layer of its decoder layers into a ternary one and trains with these
in place. The loss is the cross-entropy of answers plus the divergence from the shipped model's. The tower, the
connector and everything else stay as they are but for the norms, embeddings and head, which learn along.

A stopped run goes on where it was. `--smoke` takes five steps.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from reference import tokenizer
from reference.lessons import FIRST_SEED, Lesson, Lessons, load_vlm
from reference.ternary import TernaryLinear
from reference.train_vlm import Conversations, Decoder, graded
from reference.training import MasterWeights, Run, Schedule

HERE = pathlib.Path(__file__).parent
TEACHER = HERE / "checkpoints" / "vlm"
_BLEND_SHARE = 0.1  # of the run, in which weights move from float to ternary


def make_ternary(layers: nn.Module) -> list[TernaryLinear]:
    """Replace every linear layer inside `layers` by a ternary one in place; return the new ones."""
    found = [(name, module) for name, module in layers.named_modules() if isinstance(module, nn.Linear)]
    made = []
    for name, module in found:
        made.append(TernaryLinear.of(module))
        layers.set_submodule(name, made[-1])
    return made


def loss_of(logits: torch.Tensor, lesson: Lesson) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the training loss and what the log shows, from the student's logits [N, V]."""
    loss, facts = graded(logits, lesson.batch)
    weights = torch.from_numpy(lesson.batch.weights)
    divergence = functional.kl_div(
        logits.log_softmax(-1), lesson.logits.float().log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    divergence = (divergence * weights).sum() / weights.sum()
    return loss + divergence, {"kl": float(divergence.detach()), **facts}


def train(model: nn.Module, args: argparse.Namespace) -> MasterWeights:
    """Train the decoder in place; return its weights."""
    layers = make_ternary(model.model.text_model.layers)
    masters = MasterWeights(Decoder(model), args.lr, ("embed_tokens", "lm_head"))
    run = Run(args.work, "ternary", Schedule(args.steps, 0, warmup_steps=50), (masters,), args.save_every_s)
    stream = Lessons(TEACHER, args.conversations, args.lessons, run.step)
    lessons = iter(DataLoader(stream, batch_size=None, num_workers=args.workers))
    mean: dict[str, float] = {}
    while not run.is_over:
        for layer in layers:
            layer.blend = min(1.0, run.progress / _BLEND_SHARE)
        lesson = next(lessons)
        loss, facts = loss_of(lesson.student_logits(model), lesson)
        loss.backward()
        run.advance()
        mean |= {k: 0.95 * mean.get(k, v) + 0.05 * v for k, v in facts.items()}
        if run.step % args.log_every == 0:
            print(run.line(mean), flush=True)
    run.save()
    return masters


def arguments() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "checkpoints" / "vlm-ternary", help="folder written")
    parser.add_argument(
        "--work", type=pathlib.Path, default=HERE / ".work" / "vlm-ternary", help="folder to resume from"
    )
    parser.add_argument("--lessons", type=pathlib.Path, default=HERE / ".work" / "lessons", help="folder of batches")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16, help="samples a step")
    parser.add_argument("--questions", type=int, default=8, help="conversations an image")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--workers", type=int, default=1, help="processes that make lessons, 0 or 1")
    parser.add_argument("--log-every", type=int, default=20, help="steps")
    parser.add_argument("--save-every-s", type=float, default=120, help="seconds between saves")
    parser.add_argument("--smoke", action="store_true", help="five small steps, nothing resumed")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Train and write the checkpoint."""
    args = arguments().parse_args(argv)
    if args.smoke:
        args.steps, args.batch, args.questions, args.workers, args.log_every = 5, 2, 3, 0, 1
        args.work = pathlib.Path(tempfile.mkdtemp(prefix="train_ternary_"))
        args.lessons = args.work / "lessons"
    torch.set_num_threads(args.threads)
    tokens = tokenizer.train()
    args.conversations = Conversations(tokens.backend_tokenizer, args.batch, args.questions, FIRST_SEED)
    train(load_vlm(TEACHER), args)


if __name__ == "__main__":
    main()
