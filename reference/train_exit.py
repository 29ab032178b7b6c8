"""Train the networks that let image tokens leave a decoder early: `python -m reference.train_exit`.

DyVTE (arXiv 2411.19628): before a layer, a small network reads the text's hidden states and tells whether the answer
would be the same if all image tokens left the layers from there on. What is learnt from is the model's own behaviour on
training scenes: for each layer, whether its greedy answer stays the same token by token when they do. A fifth of the
scenes is set aside to choose how sure a network has to be, so that of a hundred exits at most one changes an answer.

Takes minutes on two cores. Writes `visual_exit.npz` beside the checkpoint's weights, from where export takes it.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bundle.directory import open_bundle
from bundle.visual_exit import VISUAL_EXIT, Router, features_of, save_routers
from export.exporter import export_checkpoint
from quant.quality.evaluation import Question, turns_of
from reference.evaluate import CHECKPOINTS
from reference.scenes import TASKS, calibration
from runtime.one_request import Prefilled, VisionLanguageRunner
from runtime.segmented_prompt import Cut
from runtime.settings import RuntimeSettings

_MOST_TOKENS = 64
_WIDTH = 16
_SET_ASIDE = 5
_MOST_WRONG = 0.01
"""Of exits on the scenes set aside."""
_STEPS, _LEARNING_RATE, _WEIGHT_DECAY = 600, 3e-3, 0.05

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """What was found before one layer, over all scenes.

    Attributes:
        features: [n, 2D] as routers read them.
        is_same: [n] whether the answer stays the same without image tokens from there on.
    """

    features: Float32
    is_same: npt.NDArray[np.bool_]


class _Exit:
    """Drops all image tokens before one layer, and remembers what a router would have read there."""

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.features: Float32 | None = None

    def __call__(self, cut: Cut) -> npt.NDArray[np.int64]:
        if cut.layer != self.layer:
            return cut.image_rows
        self.features = features_of(cut.hidden[~cut.is_image])
        return np.empty(0, np.int64)


def observe(runner: VisionLanguageRunner, questions: Sequence[Question], layers: Sequence[int]) -> dict[int, Seen]:
    """Return what happens to the answers of questions when image tokens leave before each layer."""
    features: dict[int, list[Float32]] = {layer: [] for layer in layers}
    same: dict[int, list[bool]] = {layer: [] for layer in layers}
    for at, question in enumerate(questions):
        prompt = runner.prompt(turns_of(question), question.images)
        whole = runner.prefill(prompt, _MOST_TOKENS)
        answer = runner.reply_ids(whole, _MOST_TOKENS - 1)
        expected = _followed(runner, whole, answer)
        for layer in layers:
            leaves = _Exit(layer)
            found = _followed(runner, runner.prefill(prompt, _MOST_TOKENS, leaves), answer)
            if leaves.features is not None:
                features[layer].append(leaves.features)
                same[layer].append(found == expected)
        if at % 200 == 0:
            print(f"{at} of {len(questions)} questions", flush=True)
    return {layer: Seen(np.stack(features[layer]), np.array(same[layer])) for layer in layers}


def _followed(runner: VisionLanguageRunner, prompt: Prefilled, answer: Sequence[int]) -> list[int]:
    """Return the likeliest token in each place of an answer that is fed, and behind it: what ends it counts too."""
    logits = runner.forced_logits(prompt, [*answer, 0])  # the last one is never fed
    found: list[int] = logits.argmax(axis=-1).tolist()
    return found


def train(seen: Seen, seed: int) -> Router:
    """Return a router that lets image tokens leave where the answer stays the same."""
    torch.manual_seed(seed)
    order = np.random.default_rng(seed).permutation(len(seen.is_same))
    aside, learnt = order[::_SET_ASIDE], np.setdiff1d(order, order[::_SET_ASIDE])
    network = nn.Sequential(nn.Linear(seen.features.shape[1], _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    inputs, wanted = torch.from_numpy(seen.features[learnt]), torch.from_numpy(seen.is_same[learnt]).float()
    for _ in range(_STEPS):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(network(inputs)[:, 0], wanted).backward()
        optimizer.step()
    first, last = network[0], network[2]
    with torch.no_grad():
        last.bias -= _sure(network(torch.from_numpy(seen.features[aside]))[:, 0].numpy(), seen.is_same[aside])
        hidden, out = (torch.cat([part.weight, part.bias[:, None]], dim=1).numpy() for part in (first, last))
    return Router(np.ascontiguousarray(hidden), np.ascontiguousarray(out[0]))


def _sure(logits: Float32, is_same: npt.NDArray[np.bool_]) -> float:
    """Return the logit above which few exits change an answer; one that none exceeds where too many do."""
    for bar in np.sort(logits):
        leaving = logits > bar
        if leaving.any() and (~is_same[leaving]).mean() <= _MOST_WRONG:
            return float(bar)
    return float(logits.max()) + 1.0


def _told(seen: Seen, router: Router) -> str:
    leaves = np.array([router.logit(each) > 0 for each in seen.features])
    right = seen.is_same[leaves].mean() if leaves.any() else float("nan")
    return f"{seen.is_same.mean():.1%} could leave, {leaves.mean():.1%} do; of those, {right:.1%} answer the same"


def main(argv: list[str] | None = None) -> None:
    """Train and write the routers of a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=pathlib.Path, default=CHECKPOINTS / "vlm", help="folder (default: vlm)")
    parser.add_argument("--n", type=int, default=250, help="training scenes a task (default: 250)")
    parser.add_argument("--seed", type=int, default=0, help="of the networks (default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="of ONNX Runtime and torch (default: 2)")
    parser.add_argument("--out", type=pathlib.Path, help="file (default: visual_exit.npz of the checkpoint)")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        whole = export_checkpoint(args.checkpoint, pathlib.Path(folder) / "whole")
        layers = range(1, len(whole.states) // 2)
        export_checkpoint(args.checkpoint, pathlib.Path(folder) / "cut", segments=layers)
        settings = RuntimeSettings(intra_threads=args.threads)
        runner = VisionLanguageRunner(open_bundle(pathlib.Path(folder) / "cut"), settings)
        questions = [question for task in TASKS for question in calibration(task, args.n)]
        seen = observe(runner, questions, layers)
    routers = {layer: train(found, args.seed) for layer, found in seen.items()}
    for layer, router in routers.items():
        print(f"before layer {layer}: {_told(seen[layer], router)}")
    save_routers(args.out or args.checkpoint / VISUAL_EXIT, routers)


if __name__ == "__main__":
    main()
