"""The tower and connector that are trained, what they are shown, and the head that reads labels from the tower."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import IterableDataset
from transformers import SmolVLMForConditionalGeneration

from reference import photographs
from reference.drawing import SHAPES
from reference.drawing_batches import first_seed
from reference.enquiries import picture_for
from reference.layout import IMAGE_PX
from reference.pictures import COLOURS, FIGURES, LETTERS, TRAINING, Picture, letter_middles, render
from reference.real.symbols import CELL_ROLES, GRID, ROLES, inventory
from reference.vlm_model import SCALE_FACTOR

_PHOTOGRAPH_SHARE = 0.1
_SIGHT_WEIGHTS = {"describe": 6, "relation": 2, "count": 4, "text": 5, "digit": 3}  # of pictures made for a kind
_NOTHING_WEIGHT = 0.3  # most places say nothing; without this they drown the rest
_HERE_SHARE = 0.5  # of the loss
_PATCHES_A_TOKEN = SCALE_FACTOR**2
_KINDS = ("", *SHAPES, *LETTERS, *FIGURES, *(f"digit {d}" for d in range(10)))
_COLOURS = ("", *COLOURS)
_SIDES = {
    "said": tuple(map(len, ROLES.values())),
    "here": (len(_KINDS), len(_COLOURS)),
    "patches": (len(_KINDS), len(_COLOURS)) * _PATCHES_A_TOKEN,
    "photograph": (len(photographs.PHOTOGRAPHS) + 1,),
}
_PATCHES = GRID * SCALE_FACTOR


def squeezed(image: Image.Image) -> np.ndarray:
    """Return pixels [128, 128, 3] uint8 as the processor makes them of an image."""
    return np.asarray(image.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.LANCZOS))


def pixels_of(shown: Picture | int, rng: random.Random) -> np.ndarray:
    """Return pixels [128, 128, 3] of a picture, or of a training crop of a photograph by its index."""
    return squeezed(render(shown) if isinstance(shown, Picture) else photographs.view(shown, rng, is_held_out=False))


@dataclasses.dataclass(frozen=True)
class Labels:
    """What is to be seen in images and said about them.

    Attributes:
        cells: [I, 64] uint8 inventories, see `symbols.inventory`.
        here: [I, 2, 64] uint8, kind and colour of what has its middle in a cell, in `_KINDS` and `_COLOURS`.
        patches: [I, 64, 4, 2] uint8, kind and colour of what each patch of a cell is covered by, likewise.
        photograph: [I] int64, an index, or -1 for pictures.
    """

    cells: torch.Tensor
    here: torch.Tensor
    patches: torch.Tensor
    photograph: torch.Tensor

    @classmethod
    def of(cls, shown: list[Picture | int]) -> Labels:
        """Return the labels of pictures and of photographs by their indices."""
        photograph = [-1 if isinstance(one, Picture) else one for one in shown]
        planes = (np.stack([label(one) for one in shown]) for label in (inventory, _here, _patches))
        return cls(*map(torch.from_numpy, planes), torch.tensor(photograph))

    def to(self, device: torch.device) -> Labels:
        """Return the same on a device."""
        planes = (self.cells, self.here, self.patches, self.photograph)
        return Labels(*(plane.to(device) for plane in planes))

    @property
    def said(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `Symbols` is given."""
        return self.cells, self.photograph


def _here(shown: Picture | int) -> np.ndarray:
    planes = np.zeros((2, GRID, GRID), np.uint8)
    for item in shown.items if isinstance(shown, Picture) else ():
        row = min(GRID - 1, int(GRID * item.centre[1]))
        stamps = [(item.name if item.kind == "shape" else f"digit {item.name}", item.centre[0])]
        if item.kind == "text":
            stamps = list(zip(item.name, letter_middles(item), strict=True))
        for kind, middle in stamps:
            column = min(GRID - 1, max(0, int(GRID * middle)))
            planes[:, row, column] = _KINDS.index(kind), _COLOURS.index(item.colour)
    return planes.reshape(2, -1)


def _patches(shown: Picture | int) -> np.ndarray:
    """Return [64, 4, 2]: kind and colour of the box, of one letter in words, that the middle of each patch lies in."""
    planes = np.zeros((_PATCHES, _PATCHES, 2), np.uint8)
    middles = (np.arange(_PATCHES) + 0.5) / _PATCHES
    for item in shown.items if isinstance(shown, Picture) else ():
        left, top, right, bottom = item.box
        columns = np.flatnonzero((middles >= left) & (middles < right))
        rows = np.flatnonzero((middles >= top) & (middles < bottom))
        if not len(rows):
            rows = np.array([int(_PATCHES * item.centre[1])])
        names = [item.name if item.kind == "shape" else f"digit {item.name}"] * len(columns)
        if item.kind == "text":
            letters = np.array(letter_middles(item))
            names = [item.name[at] for at in np.abs(middles[columns, None] - letters).argmin(1)]
        for column, name in zip(columns, names, strict=True):
            planes[rows, column] = _KINDS.index(name), _COLOURS.index(item.colour)
    cells = planes.reshape(GRID, SCALE_FACTOR, GRID, SCALE_FACTOR, 2).swapaxes(1, 2)
    return cells.reshape(GRID**2, _PATCHES_A_TOKEN, 2)


class Sights(IterableDataset):  # type: ignore[type-arg]
    """Endless batches (pixels [I, 128, 128, 3] uint8, labels)."""

    def __init__(self, batch: int, start: int) -> None:
        """Begin at training seed `start`, each worker in a range of its own."""
        self._batch = batch
        self._start = start

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Labels]]:
        """Yield batches for ever."""
        seed = first_seed(self._start)
        while True:
            rngs = [random.Random(seed + i) for i in range(self._batch)]
            shown = [_shown(rng) for rng in rngs]
            pixels = np.stack([pixels_of(one, rng) for one, rng in zip(shown, rngs, strict=True)])
            yield torch.from_numpy(pixels), Labels.of(shown)
            seed += self._batch


def _shown(rng: random.Random) -> Picture | int:
    if rng.random() < _PHOTOGRAPH_SHARE:
        return rng.randrange(len(photographs.PHOTOGRAPHS))
    kind = rng.choices(list(_SIGHT_WEIGHTS), weights=list(_SIGHT_WEIGHTS.values()))[0]
    return picture_for(kind, rng, TRAINING)


class Tower(nn.Module):
    """What is trained and shipped (`vision_model`, `connector`), and the head of the first stages."""

    def __init__(self, model: SmolVLMForConditionalGeneration, *, reads_tokens: bool = False) -> None:
        """Borrow tower and connector from a whole model.

        Args:
            model: Of any sizes.
            reads_tokens: The head reads visual tokens, which then hold what it is taught; else what they are made of,
                and the connector is free to say it in the words of a decoder that is frozen.
        """
        super().__init__()
        self.vision_model = model.model.vision_model
        self.connector = model.model.connector
        of_sight = self.vision_model.config.hidden_size * SCALE_FACTOR**2
        width = model.config.text_config.hidden_size if reads_tokens else of_sight
        self.head = nn.Linear(width, sum(map(sum, _SIDES.values())))

    def sight(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the connector's matrix is given, [I, 64, 512], of pixels [I, 128, 128, 3] uint8."""
        values = pixels.permute(0, 3, 1, 2).to(self.head.weight.dtype) / 127.5 - 1
        patches = torch.ones(len(pixels), _PATCHES, _PATCHES, dtype=torch.bool, device=pixels.device)
        hidden = self.vision_model(pixel_values=values, patch_attention_mask=patches).last_hidden_state
        return self.connector.pixel_shuffle(hidden, SCALE_FACTOR)

    def features(self, sight: torch.Tensor) -> torch.Tensor:
        """Return visual tokens [I, 64, D]."""
        return self.connector.modality_projection(sight)

    def loss(
        self, seen: torch.Tensor, labels: Labels, said_share: float = 1.0
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the cross-entropy of labels, and how often they are right where something is said or shown.

        Args:
            seen: [I, 64, S], visual tokens or sights, whichever the head reads.
            labels: Of the same images.
            said_share: Weight of what is said about whole images.
        """
        said, here, patches, photograph = (
            self.head(seen).float().split([sum(sizes) for sizes in _SIDES.values()], dim=-1)
        )
        losses, facts = [], {}
        is_picture = (labels.photograph < 0).float()[:, None]
        for role, logits in zip(ROLES, said.split(_SIDES["said"], dim=-1), strict=True):
            places = [cell for cell, other in enumerate(CELL_ROLES) if other == role]
            if role != "spare":
                target = labels.cells[:, places].long()
                losses.append(said_share * _cross_entropy(logits[:, places], target, is_picture))
                facts[role] = _share_right(logits[:, places], target)
        for name, plane, logits in zip(
            ("kind here", "colour here"), (0, 1), here.split(_SIDES["here"], dim=-1), strict=True
        ):
            target = labels.here[:, plane].long()
            losses.append(_HERE_SHARE * _cross_entropy(logits, target, is_picture))
            facts[name] = _share_right(logits, target)
        patches = patches.unflatten(-1, (_PATCHES_A_TOKEN, -1)).flatten(1, 2)
        for name, plane, logits in zip(
            ("kind", "colour of patch"), (0, 1), patches.split(_SIDES["here"], dim=-1), strict=True
        ):
            target = labels.patches[..., plane].long().flatten(1)
            losses.append(_cross_entropy(logits, target, is_picture))
            facts[name] = _share_right(logits, target)
            if plane == 0:
                facts["letters here"] = _share_right(logits, torch.where(target > len(SHAPES), target, 0))
        target = (labels.photograph + 1)[:, None].expand(photograph.shape[:2])
        losses.append(_cross_entropy(photograph, target, photograph.new_ones(())))
        facts["photograph"] = _share_right(photograph, target)
        total = torch.stack(losses).sum()
        return total, {"dense": total.detach(), **facts}

    def shipped(self) -> dict[str, torch.Tensor]:
        """Return the weights of tower and connector by the names they have in the whole model."""
        return {f"model.{name}": weight for name, weight in self.state_dict().items() if not name.startswith("head.")}

    @torch.no_grad()
    def set_connector(self, sight: torch.Tensor, tokens: torch.Tensor) -> None:
        """Set the connector's matrix to the ridge regression from sights [I, 64, 512] to tokens [I, 64, D]."""
        given, wanted = sight.double().flatten(0, 1), tokens.double().flatten(0, 1)
        gram = given.T @ given
        ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.double, device=gram.device)
        self.connector.modality_projection.proj.weight.copy_(torch.linalg.solve(gram + ridge, given.T @ wanted).T)


def _cross_entropy(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the mean over what is said; logits [I, P, N], target [I, P], weight broadcast to it."""
    weight = weight * torch.where(target > 0, 1.0, _NOTHING_WEIGHT)
    each = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
    return (each * weight).sum() / weight.sum().clamp(min=1)


def _share_right(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the share of what is said that is right; 0 where nothing is said."""
    is_said = target > 0
    return ((logits.argmax(-1) == target) & is_said).sum() / is_said.sum().clamp(min=1)


def said_loss(features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance of visual tokens [I, 64, D] from what they should be, over these' variance."""
    wanted = tokens.float()
    spread = (wanted - wanted.mean((0, 1))).square().mean()
    return (features.float() - wanted).square().mean() / spread
