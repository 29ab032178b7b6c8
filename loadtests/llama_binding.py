"""llama.cpp through its Python binding: the few calls of its C interface that a comparison takes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from bundle.errors import CheckpointError, ContextLengthError, MachineError, SettingsError
from bundle.extras import install_line
from runtime.decoder import Logits

_KIND_PREFIX = "LLAMA_FTYPE_MOSTLY_"
"""llama.h's names of what a file may be quantized to, "Q4_0" and so on behind it."""
_MOST_IN_A_RUN = 2048
"""Tokens handed over at once: llama.cpp's own default."""
_LEVEL_ERROR = 4
"""ggml.h: GGML_LOG_LEVEL_ERROR."""

_CALLED: list[object] = []
"""What the library was told to call: it does so as long as the process lives."""


@dataclass(frozen=True)
class _Row:
    """One token of a run."""

    token_id: int
    position: int
    sequence: int
    wants_logits: bool


class LlamaSession(Protocol):
    """One sequence of a model that is open in llama.cpp."""

    @property
    def vocab_size(self) -> int:
        """Return V."""

    def run(self, token_ids: Sequence[int], start: int) -> Logits:
        """Forget the rows from `start` on, run tokens behind those before, and return the last one's logits: [V]."""

    def close(self) -> None:
        """Free what llama.cpp holds of it."""


class Llama(Protocol):
    """What is used of llama.cpp."""

    @property
    def version(self) -> str:
        """Return the binding's version and the instructions that the library was built for."""

    def quantize(self, file: Path, output: Path, kind: str, threads: int) -> None:
        """Write a float32 file in another kind, such as "Q4_0", as llama-quantize does."""

    def open(self, file: Path, context_tokens: int, threads: int) -> LlamaSession:
        """Open a file for one sequence of at most so many tokens."""


class NativeLlama:
    """The installed binding, llama-cpp-python.

    Raises:
        MachineError: It is not installed.
    """

    def __init__(self) -> None:
        try:
            import llama_cpp
        except ModuleNotFoundError as error:
            raise MachineError(
                f"this command needs llama.cpp's binding, llama-cpp-python. Install it with: {install_line('peers')}"
            ) from error
        self._native: ModuleType = llama_cpp
        self._complaint = ""
        _CALLED.append(llama_cpp.llama_log_callback(self._hear))
        llama_cpp.llama_log_set(_CALLED[-1], None)

    @property
    def version(self) -> str:
        """The binding's version and the instructions that the library was built for."""
        told = self._native.llama_print_system_info().decode()
        features = [part.split("=")[0].strip() for part in told.replace("CPU :", "").split("|") if "= 1" in part]
        return f"llama-cpp-python {self._native.__version__}, {' '.join(features)}"

    def quantize(self, file: Path, output: Path, kind: str, threads: int) -> None:
        """Write a float32 file in another kind.

        Raises:
            SettingsError: llama.cpp knows no such kind.
            CheckpointError: It failed.
        """
        params = self._native.llama_model_quantize_default_params()
        params.ftype = self._kind(kind)
        params.nthread = threads
        if self._native.llama_model_quantize(os.fsencode(file), os.fsencode(output), ctypes.byref(params)) != 0:
            raise CheckpointError(
                f"llama.cpp cannot write {file} as {kind}: {self._complaint or 'it does not say why'}"
            )

    def open(self, file: Path, context_tokens: int, threads: int, num_sequences: int = 1) -> NativeSession:
        """Open a file for sequences of at most so many tokens each.

        Raises:
            CheckpointError: llama.cpp cannot read it.
        """
        model = self._native.llama_model_load_from_file(os.fsencode(file), self._native.llama_model_default_params())
        if not model:
            raise CheckpointError(f"llama.cpp cannot open {file}: {self._complaint or 'it does not say why'}")
        return NativeSession(self._native, model, context_tokens, threads, num_sequences)

    def _kind(self, name: str) -> int:
        found = getattr(self._native, _KIND_PREFIX + name, None)
        if found is None:
            known = [each.removeprefix(_KIND_PREFIX) for each in dir(self._native) if each.startswith(_KIND_PREFIX)]
            raise SettingsError(f"llama.cpp has no type {name!r}; it has {', '.join(known)}")
        return int(found)

    def _hear(self, level: int, text: bytes, _: object) -> None:
        """Keep the last error that the library tells; it would write to the terminal all that it does."""
        if level == _LEVEL_ERROR:
            self._complaint = text.decode(errors="replace").strip()


class NativeSession:
    """Sequences, with llama.cpp's own defaults: a float16 cache, flash attention where it is faster.

    Args:
        native: The module.
        model: Loaded.
        context_tokens: Of each sequence, at most.
        threads: Of prompts and of single tokens.
        num_sequences: That run together.

    Raises:
        MachineError: There is no memory for the cache.
    """

    def __init__(
        self, native: ModuleType, model: Any, context_tokens: int, threads: int, num_sequences: int = 1
    ) -> None:
        params = native.llama_context_default_params()
        params.n_ctx = context_tokens * num_sequences
        params.n_seq_max = num_sequences
        params.n_batch = _MOST_IN_A_RUN
        params.n_threads = params.n_threads_batch = threads
        self._native, self._model = native, model
        self._context = native.llama_init_from_model(model, params)
        if not self._context:
            raise MachineError(f"llama.cpp has no memory for a context of {context_tokens} tokens; ask for fewer")
        self._memory = native.llama_get_memory(self._context)
        self._batch = native.llama_batch_init(_MOST_IN_A_RUN, 0, 1)
        self._context_tokens = context_tokens
        self._num_sequences = num_sequences
        self._vocab_size = int(native.llama_vocab_n_tokens(native.llama_model_get_vocab(model)))

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._vocab_size

    def run(self, token_ids: Sequence[int], start: int) -> Logits:
        """Forget the rows from `start` on, run tokens behind those before, and return the last one's logits: [V].

        Raises:
            ContextLengthError: They do not fit.
            MachineError: llama.cpp failed.
        """
        if start + len(token_ids) > self._context_tokens:
            raise ContextLengthError(
                f"{start + len(token_ids)} tokens do not fit llama.cpp's context of {self._context_tokens}"
            )
        self._native.llama_memory_seq_rm(self._memory, 0, start, -1)
        for first in range(0, len(token_ids), _MOST_IN_A_RUN):
            self._decode(token_ids[first : first + _MOST_IN_A_RUN], start + first)
        logits = self._native.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self._vocab_size,)).copy()

    def share(self) -> None:
        """Give every sequence the rows of the first, the one that `run` fills."""
        for sequence in range(1, self._num_sequences):
            self._native.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            self._native.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)

    def step(self, token_ids: Sequence[int], start: int) -> None:
        """Forget the rows from `start` on, and run one token of each of the first sequences behind those before."""
        for sequence in range(len(token_ids)):
            self._native.llama_memory_seq_rm(self._memory, sequence, start, -1)
        self._run_rows([_Row(token_id, start, sequence, True) for sequence, token_id in enumerate(token_ids)])

    def _decode(self, token_ids: Sequence[int], start: int) -> None:
        last = len(token_ids) - 1
        self._run_rows([_Row(token_id, start + at, 0, at == last) for at, token_id in enumerate(token_ids)])

    def _run_rows(self, rows: Sequence[_Row]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for at, row in enumerate(rows):
            batch.token[at] = int(row.token_id)
            batch.pos[at] = row.position
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = row.sequence
            batch.logits[at] = row.wants_logits
        failed = self._native.llama_decode(self._context, batch)
        if failed:
            raise MachineError(
                f"llama.cpp failed to run {len(rows)} tokens behind {rows[0].position}: it returned {failed}"
            )

    def close(self) -> None:
        """Free what llama.cpp holds of it."""
        self._native.llama_batch_free(self._batch)
        self._native.llama_free(self._context)
        self._native.llama_model_free(self._model)
