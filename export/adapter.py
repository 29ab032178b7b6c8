"""A LoRA adapter as PEFT saves it, merged into weights while they are read (Hu et al. 2021, section 4.1)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bundle.errors import CheckpointError, UnsupportedConfigError
from export.checkpoint import StoredTensor, WeightTensor, read_weights

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BIN = "adapter_model.bin"
"""What PEFT wrote before it wrote safetensors; read where those are not there."""
_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_NOT_MERGED = {
    "use_dora": "DoRA scales whole columns",
    "lora_bias": "its biases are not of the checkpoint",
    "alora_invocation_tokens": "it acts from a token on, and not always",
    "layer_replication": "it repeats layers",
    "target_parameters": "it changes parameters that are not of a linear layer",
    "trainable_token_indices": "it changes single rows of a table",
    "use_qalora": "its first matrices read means of inputs",
    "use_bdlora": "its matrices are blocks of larger ones",
    "kasa_config": "it takes singular values from the weights",
}
"""Settings of PEFT's LoraConfig under which the sum W + s B A is not the adapted weight."""
_REBASING = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""How `init_lora_weights` begins where PEFT takes what the matrices begin with out of the weights, at training and
whenever the adapter is loaded: what was trained is a change of what is left of them."""
_LISTED = 5


@dataclass(frozen=True)
class MergedTensor:
    """A weight with a low-rank change added.

    Attributes:
        base: The checkpoint's: [out, in], or [in, out] where `is_transposed`.
        down: [r, in].
        up: [out, r].
        scale: Of the change.
        is_transposed: The weight is stored as [in, out].
    """

    base: WeightTensor
    down: StoredTensor
    up: WeightTensor
    scale: float
    is_transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.base.shape

    def read(self) -> npt.NDArray[np.float32]:
        """Return the merged weight in float32."""
        change = np.float32(self.scale) * (self.up.read() @ self.down.read())
        return self.base.read() + (change.T if self.is_transposed else change)


@dataclass(frozen=True)
class LowRank:
    """A change of a linear layer's weight, which stays beside it.

    Attributes:
        down: [r, in].
        up: [out, r].
        scale: Of the change.
    """

    down: StoredTensor
    up: WeightTensor
    scale: float


@dataclass(frozen=True)
class Adapter:
    """An adapter folder that was opened.

    Attributes:
        folder: Where it lies.
        config: `adapter_config.json`.
        tensors: By name in the file.
        file: That of its weights, which makes another model of the checkpoint.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    file: Path

    @classmethod
    def open(cls, folder: Path) -> Adapter:
        """Return the adapter in a folder.

        Raises:
            CheckpointError: There is none, or it cannot be read.
            UnsupportedConfigError: It is no LoRA, or of a kind that is no change of weights.
        """
        config = _config(folder / CONFIG)
        if config.get("peft_type") != "LORA":
            raise UnsupportedConfigError(f"{folder / CONFIG} is of {config.get('peft_type')!r}; LORA is merged")
        for name, why in _NOT_MERGED.items():
            if config.get(name):
                raise UnsupportedConfigError(f"{folder / CONFIG} sets {name}, which cannot be merged: {why}")
        begun = config.get("init_lora_weights")
        if isinstance(begun, str) and begun.lower().startswith(_REBASING):
            raise UnsupportedConfigError(
                f"{folder / CONFIG} sets init_lora_weights {begun!r}: what the adapter began with was taken out of the "
                "weights that it changes, which the checkpoint's are not. Save it as a change of the checkpoint's "
                "(PEFT's save_pretrained with path_initial_model_for_weight_conversion), or let PEFT merge it "
                "(merge_and_unload) and export what it makes"
            )
        file = folder / WEIGHTS if (folder / WEIGHTS).is_file() else folder / _BIN
        if not file.is_file():
            raise CheckpointError(f"{folder} lacks {WEIGHTS}; save the adapter with safe_serialization=True")
        return cls(folder, config, read_weights(file), file)

    @property
    def files(self) -> tuple[Path, ...]:
        """What makes another model of the checkpoint: its weights, and the settings that scale them."""
        return self.file, self.folder / CONFIG

    def merged(
        self,
        tensors: Mapping[str, WeightTensor],
        renames: tuple[tuple[str, str], ...],
        parts: Callable[[Mapping[str, StoredTensor]], Mapping[str, WeightTensor]] = dict,
    ) -> dict[str, WeightTensor]:
        """Return a checkpoint's weights with the adapter in them, not yet read.

        Args:
            tensors: Of the checkpoint, under the names of the graphs.
            renames: From a checkpoint's names to those, pattern and replacement, in order.
            parts: Gives a tensor's rows under the names of single weights, where the checkpoint keeps several in one.

        Raises:
            CheckpointError: It changes weights that the checkpoint lacks, or of another shape.
            UnsupportedConfigError: It holds something that is neither a low-rank change nor a whole weight.
        """
        found, unknown = dict(tensors), []
        for key, tensor in self.tensors.items():
            if key.endswith(_UP):
                if key.removesuffix(_UP) + _DOWN not in self.tensors:
                    raise CheckpointError(f"{self.file} holds {key} without its lora_A")
                continue
            name = _graph_name(key.removesuffix(_DOWN) + ".weight" if key.endswith(_DOWN) else key, renames)
            if "lora_" in name:
                raise UnsupportedConfigError(
                    f"{self.file}: {key} is no change of a linear layer, which alone is merged"
                )
            rows = self._second(key) if key.endswith(_DOWN) else tensor
            for part, own in parts({name: rows}).items():
                if part not in tensors:
                    unknown.append(part)
                    continue
                found[part] = self._changed(part, key, tensors[part], own) if key.endswith(_DOWN) else own
                self._check(part, tensors[part], found[part])
        if unknown:
            raise CheckpointError(
                f"{self.folder} changes {len(unknown)} weights that the checkpoint lacks: "
                f"{', '.join(sorted(unknown)[:_LISTED])}. It was made for another model, or one that is tied here"
            )
        return found

    def changes(self, renames: tuple[tuple[str, str], ...], task: str | None = None) -> dict[str, LowRank]:
        """Return the low-rank changes by weight, under the names of the graphs.

        Args:
            renames: As of `merged`.
            task: Part of the keys, where the file holds an adapter for each of several tasks.

        Raises:
            CheckpointError: There is none of the task.
            UnsupportedConfigError: It holds something that is no low-rank change of a linear layer.
        """
        if self.config.get("fan_in_fan_out"):
            raise UnsupportedConfigError(f"{self.folder / CONFIG} sets fan_in_fan_out, which is merged alone")
        infix = "" if task is None else f".{task}"
        down_end, up_end = (f"{end.removesuffix('.weight')}{infix}.weight" for end in (_DOWN, _UP))
        found = {}
        for key, down in self.tensors.items():
            if not re.search(r"\.lora_[AB]\.", key):
                raise UnsupportedConfigError(
                    f"{self.file}: {key} is no low-rank change of a linear layer, and others are of one adapter alone; "
                    "merge each with --lora FOLDER into a bundle of its own"
                )
            if not key.endswith(down_end):
                first = key.removesuffix(up_end) + down_end
                if task is None and (not key.endswith(up_end) or first not in self.tensors):
                    raise UnsupportedConfigError(f"{self.file}: {key} has no first matrix that goes with it")
                continue
            stem = key.removesuffix(down_end)
            up = self.tensors.get(stem + up_end)
            if up is None or len(down.shape) != 2 or len(up.shape) != 2 or not 0 < down.shape[0] == up.shape[1]:
                raise UnsupportedConfigError(f"{self.file}: {key} has no second matrix that goes with it")
            name = _graph_name(f"{stem}.weight", renames)
            found[name] = LowRank(down, up, self._scale(f"{stem}{_DOWN}", down.shape[0]))
        if not found:
            raise CheckpointError(f"{self.file} holds no change{'' if task is None else f' of the task {task}'}")
        return found

    def _second(self, key: str) -> StoredTensor:
        """Return the second matrix that goes with a first one."""
        up = self.tensors.get(key.removesuffix(_DOWN) + _UP)
        if up is None:
            raise CheckpointError(f"{self.file} holds {key} without its lora_B")
        return up

    def _changed(self, name: str, key: str, base: WeightTensor, up: WeightTensor) -> MergedTensor:
        down = self.tensors[key]
        if len(base.shape) != 2 or len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
            raise UnsupportedConfigError(
                f"{self.file}: {key} is {list(down.shape)} and {list(up.shape)} for {name} of {list(base.shape)}; "
                "changes of matrices are merged"
            )
        return MergedTensor(base, down, up, self._scale(key, down.shape[0]), bool(self.config.get("fan_in_fan_out")))

    def _scale(self, key: str, rank: int) -> float:
        """Return alpha over the rank, or over its root where the adapter is rank-stabilized.

        Raises:
            CheckpointError: The rank is 0, or the settings hold no number for alpha.
        """
        module = key.removeprefix(_PREFIX).removesuffix(_DOWN)
        try:
            patterns = dict(self.config.get("alpha_pattern") or {})
            own = (value for name, value in patterns.items() if re.match(rf"(.*\.)?({name})$", module))
            alpha = float(next(own, self.config.get("lora_alpha", 8)))
            scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        except (TypeError, ValueError, ArithmeticError, re.error) as error:
            raise CheckpointError(f"{self.folder / CONFIG} says of no number how much {key} counts: {error}") from error
        if not math.isfinite(scale):
            raise CheckpointError(f"{self.folder / CONFIG} sets a lora_alpha of {alpha}; it is a number")
        return scale

    def _check(self, name: str, base: WeightTensor, changed: WeightTensor) -> None:
        shape = changed.shape
        if isinstance(changed, MergedTensor):
            shape = (changed.up.shape[0], changed.down.shape[1])
            shape = shape[::-1] if changed.is_transposed else shape
        if tuple(shape) != tuple(base.shape):
            raise CheckpointError(
                f"{self.folder} changes {name} by {list(shape)}, and the checkpoint's is {list(base.shape)}; it was "
                "made for another model"
            )


def _graph_name(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    name = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} holds no {path.name}: it is no adapter that PEFT saved") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, expected an object")
    return config
