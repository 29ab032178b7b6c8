"""The beginning of a conversation as rows of the text alone, each of which has read the images that stood before it.

AIM (arXiv 2406.07588, section 3) reads demonstrations once and keeps, of what the decoder made of them, one fused token
for each token of text; images are never read again. There a trained layer turns the last hidden state of a text token
into a virtual token that the decoder reads anew. Here nothing is trained: what stays is the text tokens' keys and
values of every layer, which is all that later tokens would have seen of them. Demonstrations are read one behind the
other, so that a later one has seen those before it; in the paper each is read alone.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np

from bundle.errors import ParameterError
from bundle.image import TileLayout, VideoTimes
from bundle.manifest import Manifest
from bundle.prompt import Placeholder, Prompt, Turn
from runtime.feeds import Int64
from runtime.graph import Array

_HEAD = "prefix"
_IDS = "token_ids"
_PARAM = "prefix"


@dataclass(frozen=True)
class StoredRows:
    """Rows of one sequence outside of any cache, as the cache stores them.

    Attributes:
        num_rows: n, of every state.
        of_state: By state input: the state's shape without B, S being n.
    """

    num_rows: int
    of_state: Mapping[str, Array] = field(repr=False)


@dataclass(frozen=True)
class FusedPrefix:
    """Messages that were read once, of which the text's rows are left.

    Attributes:
        identity: Of the bundle, and the adapter, that read them: `identity_of`.
        turns: As the chat template takes them.
        layouts: Of their images.
        token_ids: [N] of all that was read, images included.
        rows: Of the tokens that are no image's, at their old positions.
    """

    identity: str
    turns: tuple[Turn, ...]
    layouts: tuple[TileLayout, ...]
    token_ids: Int64 = field(repr=False)
    rows: StoredRows

    @property
    def num_dropped_tokens(self) -> int:
        """Tokens of its images, which nobody reads again."""
        return len(self.token_ids) - self.rows.num_rows

    def rest_of(self, whole: Prompt) -> Prompt:
        """Return what stands behind the prefix, at its positions in the whole conversation.

        Args:
            whole: The prompt of a conversation that begins with the prefix's turns.

        Raises:
            ParameterError: It does not begin with the prefix's tokens, as where functions are told before all turns.
        """
        size, num_images = len(self.token_ids), len(self.layouts)
        if whole.num_tokens <= size or not np.array_equal(whole.token_ids[:size], self.token_ids):
            raise ParameterError(
                "the conversation does not begin with the tokens of its fused prefix: leave tools out, which are told "
                "before it, and send no system message behind it",
                _PARAM,
            )
        spans = tuple(
            replace(span, start=span.start - size, end=span.end - size, image=span.image - num_images)
            for span in whole.spans
            if span.image >= num_images
        )
        return Prompt(
            whole.token_ids[size:],
            spans,
            whole.positions[..., size:],
            whole.next_position,
            whole.num_images - num_images,
            seen=None if whole.seen is None else whole.seen[:, size:] - size,
        )

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads."""
        head = {
            "identity": self.identity,
            "turns": [[turn.role, [_told(part) for part in turn.parts]] for turn in self.turns],
            "layouts": [list(astuple(layout)) for layout in self.layouts],
        }
        file = io.BytesIO()
        encoded = np.frombuffer(json.dumps(head).encode(), np.uint8)
        np.savez(file, **{_HEAD: encoded, _IDS: self.token_ids}, **self.rows.of_state)  # type: ignore[arg-type]
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, manifest: Manifest, adapter: str = "") -> FusedPrefix:
        """Return a prefix for a model.

        Args:
            content: As `to_bytes` wrote it.
            manifest: Of the model's bundle.
            adapter: Of the model's, through which the request runs; empty: none.

        Raises:
            ParameterError: It is damaged, or was made with another bundle.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            head: dict[str, Any] = json.loads(found.pop(_HEAD).tobytes())
            ids = found.pop(_IDS)
            turns = tuple(Turn(role, tuple(map(_part, parts))) for role, parts in head["turns"])
            layouts = tuple(map(_layout, head["layouts"]))
            identity = str(head["identity"])
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ParameterError("the fused prefix is damaged; delete it and make it again", _PARAM) from error
        if identity != identity_of(manifest, adapter):
            raise ParameterError(
                f"the fused prefix was made with another bundle than the {manifest.name} that is served now, or "
                "through another adapter; delete it and make it again",
                _PARAM,
            )
        return cls(identity, turns, layouts, ids, _checked(found, manifest))


def identity_of(manifest: Manifest, adapter: str = "") -> str:
    """Return what decides the rows that a bundle makes of a text: weights, adapter, and how its cache stores rows."""
    through = [f"adapter {adapter}"] if adapter else []
    return ":".join([manifest.source_sha256, manifest.cache_dtype, *_digests(manifest), *through])


def text_rows(prompt: Prompt) -> Int64:
    """Return which tokens of a prompt are no image's."""
    is_text = np.ones(prompt.num_tokens, np.bool_)
    for span in prompt.spans:
        is_text[span.start : span.end] = False
    return np.flatnonzero(is_text)


def _digests(manifest: Manifest) -> Sequence[str]:
    return [manifest.files[name].sha256 for name in sorted(manifest.files) if name.startswith("decoder")]


def _checked(found: Mapping[str, Array], manifest: Manifest) -> StoredRows:
    """Return rows of the model's states.

    Raises:
        ParameterError: They are others.
    """
    states = {state.input: state for state in manifest.states}
    sizes = {array.shape[states[name].row_axis - 1] for name, array in found.items() if name in states and array.ndim}
    num_rows = sizes.pop() if len(sizes) == 1 else 0
    wanted = {name: (state.sizes(1, num_rows)[1:], np.dtype(state.dtype)) for name, state in states.items()}
    if {name: (array.shape, array.dtype) for name, array in found.items()} != wanted:
        raise ParameterError("the fused prefix holds other rows than its model's; delete it and make it again", _PARAM)
    return StoredRows(num_rows, found)


def _layout(told: Sequence[Any]) -> TileLayout:
    """Return a layout of its fields in order; files of before end with the third."""
    fields: list[Any] = [tuple(each) if isinstance(each, list) else each for each in told]
    layout = TileLayout(*fields)
    return layout if layout.video is None else replace(layout, video=_times(layout.video))


def _times(told: Any) -> VideoTimes:
    """Return a video's times of what `astuple` made of them."""
    middles_s, group_s = told
    return VideoTimes(tuple(middles_s), group_s)


def _told(part: str | Placeholder) -> list[str]:
    return ["text", part] if isinstance(part, str) else ["placeholder", part.value]


def _part(told: Sequence[str]) -> str | Placeholder:
    kind, value = told
    return value if kind == "text" else Placeholder(value)
