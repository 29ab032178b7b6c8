"""A Hugging Face checkpoint on disk: its config, and its weights read one at a time."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bundle.directory import sha256_of
from bundle.errors import CheckpointError, UnsupportedConfigError
from export.lfs import require_content
from export.torch_archive import read_archive

_SINGLE, _BIN = "model.safetensors", "pytorch_model.bin"
_WHOLE = (_SINGLE, f"{_SINGLE}.index.json", _BIN, f"{_BIN}.index.json")
"""Weights and indices of shards, in the order in which transformers looks for them."""
_AUTHORS = "*.pt"
"""Where none of those is there, the one file that authors' own code has saved (MobileCLIP)."""
BIN_PATTERNS = (("pytorch_model.bin", "pytorch_model-*.bin", "open_clip_pytorch_model.bin"), (_AUTHORS,))
"""Weights in PyTorch's own format, among a checkpoint's files; the second where none of the first is there."""
OPEN_CLIP = "open_clip"
NANOVLM = "nanovlm"
_NANOVLM_KEYS = {"vit_hidden_dim", "lm_hidden_dim", "mp_pixel_shuffle_factor"}
"""Of a config that names no type: nanoVLM's is its training code's dataclass as it stands."""
"""The model type of a checkpoint with this file instead of a config.json."""
_OPEN_CLIP_CONFIG = "open_clip_config.json"
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
LANGUAGE_MODEL = "language_model"
"""A folder in CLIP's with a language model that reads its texts, published apart (LLM2CLIP)."""
TOWER_FOLDER = "vision_tower"
"""A folder in a LLaVA's with the tower that its config names, published apart."""
TOWER_KEY = "tower"
"""What a config has of that folder: its `config`, and `images`, the settings of its image processor."""
_NAMED_TOWER = "mm_vision_tower"
_OF_TOWER = "model.vision_tower."
PROMPTS = "prompt_learner.safetensors"
"""A file in CLIP's folder with prompts that were learned for it (MaPLe)."""
CLIP_MODE = "clip_mode"
"""Several CLIPs in folders of their own."""
_EXPERT = "expert_"
_DEEP_PROMPTS = "compound_prompts_text."
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads")
"""Keys of a config and of the configs in it that every family divides by or counts to."""
_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit on its JSON header (safetensors, "Format")."""

_PIECE_NUMBERS = 1 << 24
"""Of a tensor that is converted piece by piece: 64 MB of float32."""
_WEIGHT_DTYPES: dict[str, npt.DTypeLike] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
}
_DTYPES: dict[str, npt.DTypeLike] = {
    **_WEIGHT_DTYPES,
    "I8": np.int8,
    "U8": np.uint8,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
}
_MAPPED: dict[str, npt.DTypeLike] = {**_DTYPES, "I16": np.int16, "BOOL": np.bool_}
"""Number formats that are known; codes in bytes are weights only with the scales that belong to them."""


class WeightTensor(Protocol):
    """A weight that is read when it is written into a graph, whatever its checkpoint stores."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight, not of its codes."""

    def read(self) -> npt.NDArray[np.float32]:
        """Return the weight in float32."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies; nothing is read before `read`.

    Attributes:
        file: The weight file.
        dtype: Its name in a safetensors header, e.g. "BF16".
        shape: As stored.
        offset: Of its first byte in the file.
        strides: Steps along its axes, in numbers; None where its numbers lie one behind another.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...] | None = None

    def read(self) -> npt.NDArray[np.float32]:
        """Return the tensor in float32; a float32 source is memory-mapped, the others are converted."""
        self.require_numbers()
        if self.strides is not None:
            return np.ascontiguousarray(self.mapped(), np.float32)
        return self.mapped().astype(np.float32, copy=False)

    def pieces(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the tensor's numbers in float32, some after others in the order in which they are stored."""
        self.require_numbers()
        if self.strides is not None:
            yield from self._gathered()
            return
        numbers = self.mapped().reshape(-1)
        for start in range(0, len(numbers), _PIECE_NUMBERS):
            yield numbers[start : start + _PIECE_NUMBERS].astype(np.float32, copy=False)

    def require_numbers(self) -> None:
        """Check that a weight is stored in a format that export reads.

        Raises:
            UnsupportedConfigError: It is not.
        """
        if self.dtype not in _WEIGHT_DTYPES:
            raise UnsupportedConfigError(
                f"{self.file} stores a weight as {self.dtype}; export reads {', '.join(_WEIGHT_DTYPES)}. "
                "Save the checkpoint unquantized, e.g. with model.save_pretrained(...) in bfloat16."
            )

    def mapped(self) -> npt.NDArray[Any]:
        """Return the tensor as stored, memory-mapped; its dtype is one that export knows."""
        dtype = np.dtype(_MAPPED[self.dtype])
        if 0 in self.shape:
            return np.empty(self.shape, dtype)
        if self.strides is None:
            stored = np.memmap(self.file, dtype=dtype, mode="r", offset=self.offset, shape=self.shape or (1,))
            return stored.reshape(self.shape)
        end = sum((count - 1) * step for count, step in zip(self.shape, self.strides, strict=True)) + 1
        span = np.memmap(self.file, dtype=dtype, mode="r", offset=self.offset, shape=(end,))
        steps = [step * dtype.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(span, self.shape, steps, writeable=False)

    def _gathered(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the numbers of a view, some rows after others."""
        rows = self.mapped()
        step = max(1, _PIECE_NUMBERS * len(rows) // max(1, rows.size))
        for start in range(0, len(rows), step):
            yield np.ascontiguousarray(rows[start : start + step], np.float32).reshape(-1)

    @property
    def is_codes(self) -> bool:
        """Whether bytes are stored that are no numbers by themselves."""
        return self.dtype in _DTYPES and self.dtype not in _WEIGHT_DTYPES


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that was opened and whose weights were listed.

    Attributes:
        folder: Where it lies.
        config: `config.json`.
        tensors: By the name they carry in the files.
        files: The weight files, sorted by name.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    files: tuple[Path, ...]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Return the checkpoint in `folder`.

        Raises:
            CheckpointError: No config, no weights, or a file that cannot be parsed.
        """
        config, is_open_clip = _config(folder)
        _check_sizes(config)
        files = _open_clip_files(folder) if is_open_clip else _weight_files(folder)
        tensors: dict[str, StoredTensor] = {}
        for file in files:
            tensors.update(read_weights(file))
        if config.get("model_type") == CLIP_MODE:
            return cls(folder, config, tensors, files)._with_experts()
        inner, prompts = folder / LANGUAGE_MODEL, folder / PROMPTS
        found = cls(folder, config, tensors, files)
        if _NAMED_TOWER in config and (folder / TOWER_FOLDER).is_dir():
            return found.with_tower(folder / TOWER_FOLDER)
        if prompts.is_file():
            return found._prompted(prompts)
        return found._joined(inner) if inner.is_dir() else found

    @property
    def lacking_tower(self) -> str | None:
        """What the config calls a tower whose weights are in another repository; None where nothing lacks."""
        named = self.config.get(_NAMED_TOWER)
        has_weights = any(name.startswith(_OF_TOWER) for name in self.tensors)
        return None if named is None or has_weights or TOWER_KEY in self.config else str(named)

    def with_tower(self, folder: Path) -> Checkpoint:
        """Return this, with the tower of a folder: its sizes, its preprocessing, and its weights unless there are some.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        stated = {
            "config": _read_json(folder / "config.json"),
            "images": _read_json(folder / "preprocessor_config.json"),
        }
        config = {**self.config, TOWER_KEY: stated}
        if self.lacking_tower is None:
            return Checkpoint(self.folder, config, self.tensors, self.files)
        files = _weight_files(folder)
        found = {name: tensor for file in files for name, tensor in read_weights(file).items()}
        of_images = {name: tensor for name, tensor in found.items() if name.startswith("vision_model.")} or found
        tensors = {f"{_OF_TOWER}{_OF_TOWER.split('.')[1]}.{name}": tensor for name, tensor in of_images.items()}
        return Checkpoint(self.folder, config, {**self.tensors, **tensors}, (*self.files, *files))

    def _prompted(self, file: Path) -> Checkpoint:
        """Return this, with the prompts of a file in it.

        Raises:
            CheckpointError: This is no CLIP, or the file holds no prompts.
        """
        prompts = read_header(file)
        if self.config.get("model_type") != "clip" or "ctx" not in prompts:
            raise CheckpointError(
                f"{file} beside a checkpoint of type {self.config.get('model_type')!r} holds {len(prompts)} tensors; "
                "what is wanted is MaPLe's prompt learner, with `ctx` in it, beside a CLIP"
            )
        deep = sum(name.startswith(_DEEP_PROMPTS) for name in prompts)
        found = {"num": prompts["ctx"].shape[0], "deep": deep}
        tensors = self.tensors | {f"prompt_learner.{name}": tensor for name, tensor in prompts.items()}
        config = {**self.config, "model_type": "maple", "prompts": found}
        return Checkpoint(self.folder, config, tensors, (*self.files, file))

    def _joined(self, inner: Path) -> Checkpoint:
        """Return this, with the language model of a folder in it as the tower of texts.

        Raises:
            CheckpointError: This is no CLIP.
        """
        if self.config.get("model_type") not in ("clip", "llm2clip"):
            raise CheckpointError(
                f"{inner} is a language model in a checkpoint of type {self.config.get('model_type')!r}; only CLIP's "
                "reads texts by one (LLM2CLIP)"
            )
        texts = Checkpoint.open(inner)
        config = {**self.config, "model_type": "llm2clip", "text_config": texts.config}
        tensors = self.tensors | {f"text_model.{name}": tensor for name, tensor in texts.tensors.items()}
        return Checkpoint(self.folder, config, tensors, (*self.files, *texts.files))

    def _with_experts(self) -> Checkpoint:
        """Return this, with the CLIPs of its folders in it, and how many fine clusters there are.

        Raises:
            CheckpointError: There are no experts or no words, or no clusters.
        """
        num = len(list(self.folder.glob(f"{_EXPERT}[0-9]*")))
        if not num or not {"center", "assign"} <= self.tensors.keys():
            raise CheckpointError(
                f"{self.folder} holds {num} folders {_EXPERT}0, {_EXPERT}1, ... and the tensors "
                f"{', '.join(sorted(self.tensors)) or 'none'}; wanted are experts, and center and assign of clusters"
            )
        experts = [Checkpoint.open(self.folder / f"{_EXPERT}{number}") for number in range(num)]
        words = Checkpoint.open(self.folder / "words")
        config = {**self.config, "experts": [each.config for each in experts], "words": words.config}
        tensors = {**self.tensors, **{f"words.{name}": tensor for name, tensor in words.tensors.items()}}
        for number, each in enumerate(experts):
            tensors |= {f"experts.{number}.{name}": tensor for name, tensor in each.tensors.items()}
        files = [file for each in (*experts, words) for file in each.files]
        config["num_clusters"] = self.tensors["center"].shape[0]
        return Checkpoint(self.folder, config, tensors, (*self.files, *files))

    def digest(self, *more: Path | None) -> str:
        """Return a hex SHA-256 over the weight files, in order of their names, and then over `more`, if any."""
        whole = hashlib.sha256()
        for file in (*self.files, *(file for file in more if file is not None)):
            whole.update(sha256_of(file).encode())
        return whole.hexdigest()


def _config(folder: Path) -> tuple[dict[str, Any], bool]:
    """Return a checkpoint's config, and whether it is open_clip's; of two in a folder, transformers' if it is whole."""
    has_weights = any((folder / name).is_file() for name in _WHOLE)
    is_open_clip = any((folder / name).is_file() for name in _OPEN_CLIP_WEIGHTS)
    has_config = (folder / "config.json").is_file()
    if (has_config and (has_weights or not is_open_clip)) or not (folder / _OPEN_CLIP_CONFIG).is_file():
        config = _read_json(folder / "config.json")
        return ({"model_type": NANOVLM, **config} if config.keys() >= _NANOVLM_KEYS else config), False
    return {"model_type": OPEN_CLIP, **_read_json(folder / _OPEN_CLIP_CONFIG)}, True


def _check_sizes(config: dict[str, Any]) -> None:
    """Refuse sizes that are no whole numbers above 0; lists, one number a stage or layer, are for a family to read."""
    nested = [(f"{key}.", value) for key, value in config.items() if isinstance(value, dict)]
    for where, section in (("", config), *nested):
        for key in _SIZES:
            size = section.get(key)
            if size is None or isinstance(size, list):
                continue
            if type(size) is not int or size < 1:
                raise UnsupportedConfigError(f"config.json: {where}{key} is {size!r}; a whole number above 0 is wanted")


def _read_json(path: Path) -> dict[str, Any]:
    require_content(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} holds no {path.name}: it is not a Hugging Face checkpoint") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the whole file, or the shards that an index lists: the first of `_WHOLE`, as in transformers."""
    first = next((name for name in _WHOLE if (folder / name).is_file()), None)
    if first is None:
        files = tuple(folder.glob(_AUTHORS))
        if len(files) != 1:
            raise CheckpointError(
                f"{folder} lacks {_SINGLE}, and {_BIN}; without them one file {_AUTHORS} is read, and here are "
                f"{len(files)}. Export reads safetensors and what torch.save wrote."
            )
        return files
    if not first.endswith(".json"):
        return (folder / first,)
    named = {str(name) for name in dict(_read_json(folder / first).get("weight_map") or {}).values()}
    files = tuple(folder / Path(name).name for name in sorted(named))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise CheckpointError(f"{folder} lacks {', '.join(missing) or 'shards'}, which {first} names")
    return files


def _open_clip_files(folder: Path) -> tuple[Path, ...]:
    first = next((name for name in _OPEN_CLIP_WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        raise CheckpointError(
            f"{folder} lacks {' and '.join(_OPEN_CLIP_WEIGHTS)}; open_clip writes them with push_to_hf_hub.save_for_hf."
        )
    return (folder / first,)


def read_weights(file: Path) -> dict[str, StoredTensor]:
    """Return where the tensors of a file lie, by name: of a safetensors file, or of one that torch.save wrote.

    Raises:
        CheckpointError: It is neither, damaged, or holds more than weights.
    """
    if file.suffix == ".safetensors":
        return read_header(file)
    return {
        name: StoredTensor(file, each.dtype, each.shape, each.offset, each.strides)
        for name, each in read_archive(file).items()
    }


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return where the tensors of a safetensors file lie, by name.

    Raises:
        CheckpointError: It is none, or was cut short.
    """
    require_content(file)
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"header of {length} bytes")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        return {name: _stored(file, name, entry, 8 + length) for name, entry in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is not a safetensors file, or was cut short: {error}") from error


def _stored(file: Path, name: str, entry: dict[str, Any], data_start: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    dtype = _DTYPES.get(entry["dtype"])
    if start < 0 or (dtype is not None and end - start != math.prod(entry["shape"]) * np.dtype(dtype).itemsize):
        raise ValueError(f"{name} of shape {entry['shape']} is said to lie in bytes {start} to {end}")
    if data_start + end > file.stat().st_size:
        raise ValueError(f"{file.stat().st_size} bytes where the header promises {data_start + end}")
    return StoredTensor(file, entry["dtype"], tuple(entry["shape"]), data_start + start)
