"""Questions put to llama.cpp with the tokens that a bundle makes of them; the bundle itself is asked only once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from bundle.errors import SettingsError
from bundle.prompt import Turn
from loadtests.llama_binding import LlamaSession
from quant.quality.answers import AnsweringModel
from runtime.decoder import Logits
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import Prefilled, SeenImages


class LlamaAnswers:
    """llama.cpp as an answering model: token ids come from the bundle, so no tokenizer makes a difference.

    Args:
        session: The file under test.
        bundle: Makes prompts and texts; its graphs are not run.
        eos_token_ids: That end an answer.
    """

    def __init__(self, session: LlamaSession, bundle: AnsweringModel, eos_token_ids: Sequence[int]) -> None:
        self._session, self._bundle, self._eos_token_ids = session, bundle, eos_token_ids

    def see(self, images: Sequence[Image.Image]) -> SeenImages:
        """Return that nothing was seen.

        Raises:
            SettingsError: There are images.
        """
        if images:
            raise SettingsError("llama.cpp is compared on questions without images; leave out those that have one")
        return self._bundle.see(images)

    def prompt_about(self, turns: Sequence[Turn], seen: SeenImages) -> FilledPrompt:
        """Return the bundle's prompt.

        Raises:
            SettingsError: The file does not know a token of it.
        """
        prompt = self._bundle.prompt_about(turns, seen)
        _require_known(prompt.prompt.token_ids.tolist(), self._session.vocab_size)
        return prompt

    def prefill(self, prompt: FilledPrompt, room_tokens: int) -> Prefilled:
        """Run a prompt into an empty cache."""
        return Prefilled(prompt, self._session.run(prompt.prompt.token_ids.tolist(), 0), 0)

    def answer_ids(self, answer: str) -> list[int]:
        """Return the bundle's ids."""
        return self._bundle.answer_ids(answer)

    def forced_logits(self, prompt: Prefilled, answer_ids: Sequence[int]) -> Logits:
        """Return the logits from which each token of a given answer would be chosen, fed one at a time."""
        start = prompt.prompt.num_tokens
        fed = (self._session.run([token_id], start + at) for at, token_id in enumerate(answer_ids[:-1]))
        return np.stack([prompt.logits, *fed])

    def reply_ids(self, prompt: Prefilled, max_tokens: int) -> list[int]:
        """Return the greedy reply, without the token that ends it."""
        reply: list[int] = []
        logits = prompt.logits
        while len(reply) < max_tokens and (token_id := int(logits.argmax())) not in self._eos_token_ids:
            logits = self._session.run([token_id], prompt.prompt.num_tokens + len(reply))
            reply.append(token_id)
        return reply

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return a reply as the bundle's tokenizer spells it."""
        return self._bundle.text_of(token_ids)


class RecalledAnswers:
    """The bundle's own answers, computed once and kept for every file that is held against them.

    Logits are cut to the vocabulary of the files, which lack the rows that a checkpoint keeps for images; 4 V bytes
    stay in memory for each answer token, 0.2 MB of 49,152.

    Args:
        bundle: Answers.
        vocab_size: V of the files.
    """

    def __init__(self, bundle: AnsweringModel, vocab_size: int) -> None:
        self._bundle, self._vocab_size = bundle, vocab_size
        self._logits: dict[tuple[bytes, tuple[int, ...]], Logits] = {}
        self._replies: dict[tuple[bytes, int], list[int]] = {}
        self._running: Prefilled | None = None

    def see(self, images: Sequence[Image.Image]) -> SeenImages:
        """Return what the bundle sees."""
        return self._bundle.see(images)

    def prompt_about(self, turns: Sequence[Turn], seen: SeenImages) -> FilledPrompt:
        """Return the bundle's prompt."""
        return self._bundle.prompt_about(turns, seen)

    def prefill(self, prompt: FilledPrompt, room_tokens: int) -> Prefilled:
        """Return the prompt, which is run when something is asked that is not known."""
        self._running = None
        return Prefilled(prompt, np.empty(0, np.float32), room_tokens)

    def answer_ids(self, answer: str) -> list[int]:
        """Return the bundle's ids.

        Raises:
            SettingsError: The files do not know one of them.
        """
        found = self._bundle.answer_ids(answer)
        _require_known(found, self._vocab_size)
        return found

    def forced_logits(self, prompt: Prefilled, answer_ids: Sequence[int]) -> Logits:
        """Return the logits from which each token of a given answer would be chosen."""
        key = _key(prompt), tuple(answer_ids)
        if key not in self._logits:
            logits = self._bundle.forced_logits(self._run(prompt), answer_ids)
            self._logits[key] = logits[:, : self._vocab_size].copy()
        return self._logits[key]

    def reply_ids(self, prompt: Prefilled, max_tokens: int) -> list[int]:
        """Return the greedy reply, without the token that ends it."""
        key = _key(prompt), max_tokens
        if key not in self._replies:
            self._replies[key] = self._bundle.reply_ids(self._run(prompt), max_tokens)
        return self._replies[key]

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return a reply as a reader sees it."""
        return self._bundle.text_of(token_ids)

    def _run(self, prompt: Prefilled) -> Prefilled:
        if self._running is None:
            self._running = self._bundle.prefill(prompt.prompt, prompt.capacity_tokens)
        return self._running


def _require_known(token_ids: Sequence[int], vocab_size: int) -> None:
    if max(token_ids) >= vocab_size:
        raise SettingsError(
            f"a question has token {max(token_ids)}, and llama.cpp's file knows {vocab_size}: its vocabulary is not "
            "the bundle's. Export the bundle from the checkpoint that the file was made of."
        )


def _key(prompt: Prefilled) -> bytes:
    return prompt.prompt.prompt.token_ids.tobytes()
