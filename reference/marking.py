"""Marks answers in one forward pass each: whether greedy decoding would give them, and how likely the model holds them.

A greedy reply equals the right answer, its end included, exactly when every token of it is the most probable one after
those before it. That needs no decoding loop, and the likelihood tells models apart that are right equally often.
"""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import Idefics3Processor, SmolVLMForConditionalGeneration

from reference.packing import Packer
from reference.scenes import Example

_BATCH = 25


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a model makes of one example.

    Attributes:
        task: Of the example.
        is_right: Whether the greedy reply is the right answer token by token.
        nll: Negative log-likelihood of the whole answer, in nats.
    """

    task: str
    is_right: bool
    nll: float


class Marker:
    """Holds examples as a processor prepares them, to mark many models alike."""

    def __init__(self, processor: Idefics3Processor) -> None:
        """Borrow the processor's tokenizer."""
        self._processor = processor
        self._packer = Packer(processor.tokenizer.backend_tokenizer)

    def marks(self, model: SmolVLMForConditionalGeneration, examples: list[Example]) -> list[Mark]:
        """Return one mark an example, in order."""
        batches = [examples[start : start + _BATCH] for start in range(0, len(examples), _BATCH)]
        return [mark for batch in batches for mark in self._batch(model, batch)]

    @torch.inference_mode()
    def _batch(self, model: SmolVLMForConditionalGeneration, examples: list[Example]) -> list[Mark]:
        conversations = [self._tokens(example) for example in examples]
        ids = pad_sequence([torch.tensor(tokens) for tokens, _ in conversations], batch_first=True)
        lengths = torch.tensor([[len(tokens)] for tokens, _ in conversations])
        texts = ["<image>" * len(example.images) for example in examples]
        images = self._processor(
            text=texts, images=[list(e.images) for e in examples], padding=True, return_tensors="pt"
        )
        logits = model(
            input_ids=ids,
            attention_mask=(torch.arange(ids.shape[1]) < lengths).long(),
            pixel_values=images["pixel_values"],
            pixel_attention_mask=images["pixel_attention_mask"],
        ).logits.float()
        marks = []
        for row, (example, (tokens, start)) in enumerate(zip(examples, conversations, strict=True)):
            answer = torch.tensor(tokens[start:])
            own = logits[row, start - 1 : len(tokens) - 1]
            nll = functional.cross_entropy(own, answer, reduction="sum")
            marks.append(Mark(example.task, bool((own.argmax(-1) == answer).all()), float(nll)))
        return marks

    def _tokens(self, example: Example) -> tuple[list[int], int]:
        """Return a conversation's tokens up to the end of its last answer, and where that answer starts."""
        tokens = self._packer.prefix(len(example.images))
        start = 0
        for number, turn in enumerate(example.turns):
            piece, question_tokens = self._packer.turn(turn, number == 0)
            start = len(tokens) + question_tokens
            tokens += piece
        return tokens[:-1], start  # all but the line feed
