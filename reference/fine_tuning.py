"""What the scripts that fine-tune the shipped vision-language model share: their options and their loop."""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration

from reference.lessons import FIRST_SEED, Lesson, Lessons
from reference.ternary import TernaryLinear
from reference.train_vlm import Conversations, Decoder
from reference.training import MasterWeights, Run, Schedule

HERE = pathlib.Path(__file__).parent
START = HERE / "checkpoints" / "vlm"
"""The checkpoint that is fine-tuned, and whose tower and answers the lessons hold."""
_WARMUP_STEPS = 50
_ADAMW_NAMES = ("embed_tokens", "lm_head", "router", ".experts.")  # Muon on 48 expert matrices costs a third of a step
_BLEND_SHARE = 0.1  # of the run, in which weights move from float to ternary

Loss = Callable[[torch.Tensor, Lesson], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""(student's logits [N, V], lesson) -> the loss and what the log shows."""


def arguments(description: str | None, steps: int, lr: float) -> argparse.ArgumentParser:
    """Return a command line with the options that both scripts have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, help="folder written; if none, one of checkpoints/ or of WORK")
    parser.add_argument("--work", type=pathlib.Path, default=HERE / ".work", help="folder of states and lessons")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=16, help="samples a step")
    parser.add_argument("--questions", type=int, default=8, help="conversations an image")
    parser.add_argument("--lr", type=float, default=lr, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--workers", type=int, choices=(0, 1), default=1, help="processes that make lessons")
    parser.add_argument("--log-every", type=int, default=20, help="steps")
    parser.add_argument("--save-every-s", type=float, default=120, help="seconds between saves")
    parser.add_argument("--smoke", action="store_true", help="five small steps, nothing resumed")
    return parser


def start(args: argparse.Namespace) -> None:
    """Apply `--smoke` and `--threads`."""
    if args.smoke:
        args.steps, args.batch, args.questions, args.workers, args.log_every = 5, 2, 3, 0, 1
        args.work = pathlib.Path(tempfile.mkdtemp(prefix="fine_tuning_"))
    torch.set_num_threads(args.threads)


def fine_tune(model: SmolVLMForConditionalGeneration, name: str, loss_of: Loss, args: argparse.Namespace) -> None:
    """Train a model's decoder in place.

    Ternary weights are left in bfloat16, with which their codes were trained, and all others in float32.

    Args:
        model: From `lessons.load_vlm`; parameters that want no gradient stay as they are.
        name: Of the run; it goes on from `name.pt` in the work folder.
        loss_of: Judges the logits.
        args: The parsed options of `arguments`.
    """
    masters = MasterWeights(Decoder(model), args.lr, _ADAMW_NAMES)
    schedule = Schedule(args.steps, 0, _WARMUP_STEPS)
    run = Run(args.work / name, name, schedule, (masters,), args.save_every_s)
    lessons = _lessons(args, run.step)
    ternary = [module for module in model.modules() if isinstance(module, TernaryLinear)]
    mean: dict[str, torch.Tensor] = {}
    while not run.is_over:
        for layer in ternary:
            layer.blend = min(1.0, run.progress / _BLEND_SHARE)
        lesson = next(lessons)
        loss, facts = loss_of(lesson.student_logits(model), lesson)
        loss.backward()
        run.advance()
        mean |= {k: 0.95 * mean.get(k, v) + 0.05 * v for k, v in facts.items()}
        if run.step % args.log_every == 0:
            print(run.line(mean), flush=True)
    run.save()
    is_ternary = {id(layer.weight) for layer in ternary}
    for name, param in Decoder(model).named_parameters():
        if id(param) not in is_ternary:
            param.data = masters.weights()[name]


def _lessons(args: argparse.Namespace, first: int) -> Iterator[Lesson]:
    tokens = PreTrainedTokenizerFast.from_pretrained(START)
    conversations = Conversations(tokens.backend_tokenizer, args.batch, args.questions, FIRST_SEED)
    folder = args.work / f"lessons-{args.batch}x{args.questions}"
    stream = Lessons(START, conversations, folder, first)
    return iter(DataLoader(stream, batch_size=None, num_workers=args.workers))
