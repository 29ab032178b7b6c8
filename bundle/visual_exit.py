"""`visual_exit.npz`: small networks, one for each layer of a decoder, that tell whether image tokens are still needed.

They are trained on one checkpoint (`reference/train_exit.py`), lie beside its weights, and export takes them into the
bundle. Keys are `"{layer}.hidden"` [R, 2D+1] and `"{layer}.out"` [R+1], biases last; float32.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bundle.errors import BundleFileError
from bundle.json_file import printable

VISUAL_EXIT = "visual_exit.npz"
_MOST_BYTES = 1 << 24
_MOST_ARRAYS = 1 << 10

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Router:
    """Two layers that read [mean of text, last text] of the hidden states before a layer.

    Attributes:
        hidden: [R, 2D+1] the first one and its bias.
        out: [R+1] the second one and its bias.
    """

    hidden: Float32
    out: Float32

    def logit(self, features: Float32) -> float:
        """Return how sure it is that image tokens can leave: above 0, they can."""
        inner = np.maximum(self.hidden[:, :-1] @ features + self.hidden[:, -1], 0)
        return float(self.out[:-1] @ inner + self.out[-1])


def features_of(text: Float32) -> Float32:
    """Return what a router reads of the hidden states of text [n, D]: their mean and the last, each of unit rms."""
    both = np.stack([text.mean(axis=0), text[-1]])
    rms = np.sqrt((both * both).mean(axis=1, keepdims=True)) + np.float32(1e-6)
    scaled: Float32 = (both / rms).astype(np.float32).ravel()
    return scaled


def save_routers(path: Path, routers: Mapping[int, Router]) -> None:
    """Write routers by the layer that they stand before."""
    arrays = {
        f"{layer}.{part}": getattr(router, part) for layer, router in routers.items() for part in ("hidden", "out")
    }
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_routers(path: Path, hidden_size: int) -> dict[int, Router]:
    """Return the routers of a file by the layer that they stand before.

    Raises:
        BundleFileError: It is damaged, too large, or for hidden states of another width.
    """
    try:
        _check_size(path)
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        layers = sorted({int(key.partition(".")[0]) for key in arrays})
        routers = {layer: Router(arrays[f"{layer}.hidden"], arrays[f"{layer}.out"]) for layer in layers}
    except Exception as error:  # numpy parses a header as Python, and lets out whatever comes of it
        raise BundleFileError(
            f"{path} is missing or damaged: {printable(str(error))}. Export the checkpoint again."
        ) from error
    for layer, router in routers.items():
        _check_router(path, layer, router, hidden_size)
    return routers


def _check_size(path: Path) -> None:
    """Check what an archive will unpack to, by its headers.

    Raises:
        ValueError: It is more than routers take.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    num_bytes = sum(member.file_size for member in members)
    if len(members) > _MOST_ARRAYS or num_bytes > _MOST_BYTES:
        raise ValueError(
            f"{len(members)} arrays of {num_bytes} bytes; at most {_MOST_ARRAYS} of {_MOST_BYTES} are read"
        )


def _check_router(path: Path, layer: int, router: Router, hidden_size: int) -> None:
    hidden, out = router.hidden, router.out
    is_fit = hidden.ndim == 2 and hidden.shape[1] == 2 * hidden_size + 1 and out.shape == (len(hidden) + 1,)
    if not is_fit or hidden.dtype != np.float32 or out.dtype != np.float32:
        raise BundleFileError(
            f"{path}: the router before layer {layer} is {hidden.dtype} {list(hidden.shape)} and {out.dtype} "
            f"{list(out.shape)}; for this decoder it is float32 [R, {2 * hidden_size + 1}] and [R + 1]"
        )
