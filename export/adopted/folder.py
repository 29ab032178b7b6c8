"""The ONNX files of an export that others made, found by the names that Optimum and transformers.js give them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from bundle.errors import CheckpointError, UnsupportedConfigError

HUB_PATTERNS = ("*.json", "*model.onnx", "*model.onnx_data")
"""Of the files that are fetched of a hub's repository, which keeps its graphs at other precisions beside them."""
_FOLDERS = (".", "onnx")
"""Where exports keep their graphs: Optimum at the top, transformers.js one below."""
_BOTH, _VISION, _TEXT = "model.onnx", "vision_model.onnx", "text_model.onnx"
_GENERATIVE = ("decoder_model_merged.onnx", "decoder_model.onnx", "embed_tokens.onnx")


@dataclass(frozen=True)
class ExportedGraphs:
    """Which files hold an encoder's towers.

    Attributes:
        vision: None where only texts are embedded, or where `text` may hold both.
        text: The file itself.
    """

    vision: Path | None
    text: Path

    @classmethod
    def find(cls, folder: Path) -> ExportedGraphs:
        """Return the graphs of an export.

        Raises:
            CheckpointError: It holds none in float32.
            UnsupportedConfigError: It is of a model that generates.
        """
        for place in (folder / name for name in _FOLDERS):
            refuse_generating(str(place), (name for name in _GENERATIVE if (place / name).is_file()))
            if (place / _VISION).is_file() and (place / _TEXT).is_file():
                return cls(place / _VISION, place / _TEXT)
            if (place / _BOTH).is_file():
                return cls(None, place / _BOTH)
        raise CheckpointError(
            f"{folder} holds no {_BOTH}, and not both {_VISION} and {_TEXT}, neither itself nor in onnx/; found "
            f"{_listed(folder)}. Graphs that are quantized already are not adopted: take those in float32"
        )


def refuse_generating(label: str, names: Iterable[str]) -> None:
    """Check that none of an export's files is a decoder; of a repository's before any of them is fetched.

    Raises:
        UnsupportedConfigError: One is.
    """
    if found := sorted(name for name in names if PurePath(name).name in _GENERATIVE):
        raise UnsupportedConfigError(
            f"{label} holds a model that generates ({', '.join(found)}). Its decoder copies the whole cache at every "
            "token, which is not served: export the checkpoint itself with pocketvlm export"
        )


def _listed(folder: Path) -> str:
    found = sorted(
        path.relative_to(folder).as_posix() for place in _FOLDERS for path in (folder / place).glob("*.onnx")
    )
    return ", ".join(found[:20]) or "no .onnx file"
