"""A task in a few attention heads: what they give, on average, at the end of demonstrations of it.

MTV (Multimodal Task Vectors, arXiv 2406.15334): demonstrations are read a few at a time, what every attention head
gives at the last token is averaged (section 3.2), and some heads, found by trying, give that average instead of their
own at the last token of any later question, and at each token of its answer (section 3.3 and the authors' code).
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field

import numpy as np

from bundle import tensors
from bundle.errors import ParameterError
from bundle.manifest import Manifest, TensorSpec
from runtime.feeds import HeadValues
from runtime.fused_prefix import identity_of

_MARK = b"pocketvlm task vector\n"
_HEAD = "task_vector"
_VALUES, _MASK = "values", "mask"
_PARAM = "prefix"


@dataclass(frozen=True)
class HeadShape:
    """How a decoder's heads are counted.

    Attributes:
        num_layers: L.
        num_heads: H of each layer.
        width: H*C.
    """

    num_layers: int
    num_heads: int
    width: int

    @classmethod
    def of(cls, manifest: Manifest) -> HeadShape:
        """Return that of a bundle.

        Raises:
            ParameterError: Its heads cannot be read and replaced.
        """
        specs = _specs(manifest)
        if not has_open_heads(manifest):
            raise ParameterError(
                f"{manifest.name} was exported without --task-vectors, so its attention heads can be neither read nor "
                "replaced; export the checkpoint again with it, or make the prefix with method plain or fused",
                "method",
            )
        _, num_layers, width = (size for size in specs[tensors.HEAD_VALUES].shape)
        (all_heads,) = (size for size in specs[tensors.HEAD_MASK].shape[2:])
        return cls(int(num_layers), int(all_heads) // int(num_layers), int(width))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The optional outputs that tell what heads give."""
        return tuple(f"{tensors.HEAD_OUTPUTS}{layer}" for layer in range(self.num_layers))


@dataclass(frozen=True)
class TaskVector:
    """What demonstrations left in a model's heads.

    Attributes:
        identity: Of the bundle that read them: `runtime.fused_prefix.identity_of`.
        heads: The values, and which of them are used.
    """

    identity: str
    heads: HeadValues = field(repr=False)

    @property
    def num_heads(self) -> int:
        """Heads that it replaces, over all layers."""
        return int(self.heads.mask.sum())

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads."""
        file = io.BytesIO()
        head = np.frombuffer(json.dumps({"identity": self.identity}).encode(), np.uint8)
        np.savez(file, **{_HEAD: head, _VALUES: self.heads.values, _MASK: self.heads.mask})  # type: ignore[arg-type]
        return _MARK + file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, manifest: Manifest, adapter: str = "") -> TaskVector:
        """Return a task vector for a model.

        Args:
            content: As `to_bytes` wrote it.
            manifest: Of the model's bundle.
            adapter: Of the model's, through which the request runs; empty: none.

        Raises:
            ParameterError: It is damaged, or was made with another bundle.
        """
        try:
            with np.load(io.BytesIO(content.removeprefix(_MARK)), allow_pickle=False) as arrays:
                identity = str(json.loads(arrays[_HEAD].tobytes())["identity"])
                heads = HeadValues(arrays[_VALUES], arrays[_MASK])
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ParameterError("the task vector is damaged; delete it and make it again", _PARAM) from error
        shape = HeadShape.of(manifest)
        wanted = (shape.num_layers, shape.width), (shape.num_layers * shape.num_heads,)
        found = heads.values.shape, heads.mask.shape
        if identity != identity_of(manifest, adapter) or found != wanted:
            raise ParameterError(
                f"the task vector was made with another bundle than the {manifest.name} that is served now, or through "
                "another adapter; delete it and make it again",
                _PARAM,
            )
        return cls(identity, HeadValues(heads.values.astype(np.float32), heads.mask.astype(np.bool_)))


def is_task_vector(content: bytes) -> bool:
    """Return whether stored bytes are a task vector's."""
    return content.startswith(_MARK)


def has_open_heads(manifest: Manifest) -> bool:
    """Return whether a bundle's heads can be read and replaced."""
    return {tensors.HEAD_VALUES, tensors.HEAD_MASK} <= _specs(manifest).keys()


def _specs(manifest: Manifest) -> dict[str, TensorSpec]:
    if manifest.decoder is None:
        return {}
    return {spec.name: spec for spec in manifest.components[manifest.graph("decoder", "prompt")].inputs}
