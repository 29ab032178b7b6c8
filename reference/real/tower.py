"""The tower and connector that are trained, what they are shown, and the head that reads labels from the tower."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import IterableDataset
from transformers import SmolVLMForConditionalGeneration

from reference.drawing_batches import first_seed
from reference.enquiries import KINDS, picture_for
from reference.layout import IMAGE_PX
from reference.pictures import TRAINING, Picture, render
from reference.real import photographs
from reference.real.symbols import CLASSES, GRID, PLANES, labels
from reference.vlm_model import SCALE_FACTOR

_PHOTOGRAPH_SHARE = 0.1
_BLANK_WEIGHT = 0.15  # most cells show nothing; without this they drown the rest
_SHARES = dict(zip(PLANES, (1.0, 1.0, 0.3, 0.5, 0.5, 0.5, 0.3), strict=True))  # of the loss
_PATCHES = GRID * SCALE_FACTOR


def squeezed(image: Image.Image) -> np.ndarray:
    """Return pixels [128, 128, 3] uint8 as the processor makes them of an image."""
    return np.asarray(image.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.LANCZOS))


def pixels_of(shown: Picture | int, rng: random.Random) -> np.ndarray:
    """Return pixels [128, 128, 3] of a picture, or of a training crop of a photograph by its index."""
    return squeezed(render(shown) if isinstance(shown, Picture) else photographs.view(shown, rng, is_held_out=False))


class Sights(IterableDataset):  # type: ignore[type-arg]
    """Endless batches (pixels [I, 128, 128, 3] uint8, labels [I, 7, 8, 8] uint8)."""

    def __init__(self, batch: int, start: int) -> None:
        """Begin at training seed `start`, each worker in a range of its own."""
        self._batch = batch
        self._start = start

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield batches for ever."""
        seed = first_seed(self._start)
        while True:
            rngs = [random.Random(seed + i) for i in range(self._batch)]
            shown = [_shown(rng) for rng in rngs]
            pixels = np.stack([pixels_of(one, rng) for one, rng in zip(shown, rngs, strict=True)])
            yield torch.from_numpy(pixels), torch.from_numpy(np.stack([labels(one) for one in shown]))
            seed += self._batch


def _shown(rng: random.Random) -> Picture | int:
    if rng.random() < _PHOTOGRAPH_SHARE:
        return rng.randrange(len(photographs.PHOTOGRAPHS))
    return picture_for(rng.choice(KINDS), rng, TRAINING)


class Tower(nn.Module):
    """What is trained and shipped (`vision_model`, `connector`), and the head of the first stages."""

    def __init__(self, model: SmolVLMForConditionalGeneration) -> None:
        """Borrow tower and connector from a whole model."""
        super().__init__()
        self.vision_model = model.model.vision_model
        self.connector = model.model.connector
        self.head = nn.Linear(self.vision_model.config.hidden_size * SCALE_FACTOR**2, sum(CLASSES))

    def sight(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the connector's matrix is given, [I, 64, 512], of pixels [I, 128, 128, 3] uint8."""
        values = pixels.permute(0, 3, 1, 2).to(self.head.weight.dtype) / 127.5 - 1
        patches = torch.ones(len(pixels), _PATCHES, _PATCHES, dtype=torch.bool)
        hidden = self.vision_model(pixel_values=values, patch_attention_mask=patches).last_hidden_state
        return self.connector.pixel_shuffle(hidden, SCALE_FACTOR)

    def features(self, sight: torch.Tensor) -> torch.Tensor:
        """Return visual tokens [I, 64, D]."""
        return self.connector.modality_projection(sight)

    def loss(self, sight: torch.Tensor, planes: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the cross-entropy of labels [I, 7, 8, 8], and how often they are right where something is shown."""
        targets = planes.long().flatten(2)
        total, facts = torch.zeros(()), {}
        all_logits = self.head(sight).float().split(CLASSES, dim=-1)
        for plane, logits in enumerate(all_logits):
            name, target = PLANES[plane], targets[:, plane]
            weight = torch.where(target > 0, 1.0, 0.0 if name == "count" else _BLANK_WEIGHT)
            each = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(weight)
            total = total + _SHARES[name] * (each * weight).sum() / weight.sum().clamp(min=1)
            is_right = (logits.argmax(-1) == target)[target > 0]
            facts[name] = float(is_right.float().mean()) if is_right.numel() else 1.0
        return total, {"dense": float(total.detach()), **facts}

    def shipped(self) -> dict[str, torch.Tensor]:
        """Return the weights of tower and connector by the names they have in the whole model."""
        return {f"model.{name}": weight for name, weight in self.state_dict().items() if not name.startswith("head.")}

    @torch.no_grad()
    def set_connector(self, sight: torch.Tensor, tokens: torch.Tensor) -> None:
        """Set the connector's matrix to the ridge regression from sights [I, 64, 512] to tokens [I, 64, D]."""
        given, wanted = sight.double().flatten(0, 1), tokens.double().flatten(0, 1)
        gram = given.T @ given
        ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.double)
        self.connector.modality_projection.proj.weight.copy_(torch.linalg.solve(gram + ridge, given.T @ wanted).T)


def said_loss(features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance of visual tokens [I, 64, D] from what they should be, over these' variance."""
    wanted = tokens.float()
    spread = (wanted - wanted.mean((0, 1))).square().mean()
    return (features.float() - wanted).square().mean() / spread
