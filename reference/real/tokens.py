"""The real decoder's tokenizer, as its GGUF spells it, with SmolVLM's tokens for images behind it."""

from __future__ import annotations

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from bundle.errors import CheckpointError
from export.gguf_decoder import read_field

IMAGE = "<image>"
IMAGE_TOKENS = (
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    "<fake_token_around_image>",
    IMAGE,
    "<end_of_utterance>",
)
"""In the order of their ids, which follow the decoder's own; the last is there because SmolVLM's processor knows it."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's own template, which reads a content that is one string, for contents of parts."""
_SPLITTER = "smollm"
"""As `tokenizer.ggml.pre` names the splitter: each digit alone, then GPT-2's words (llama.cpp, llama-vocab.cpp)."""


def read_tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    """Return the tokenizer: the vocabulary and merges of the file, then `IMAGE_TOKENS`.

    Raises:
        CheckpointError: The file's tokenizer is of another kind.
    """
    kind = (read_field(reader, "tokenizer.ggml.model"), read_field(reader, "tokenizer.ggml.pre"))
    if kind != ("gpt2", _SPLITTER):
        raise CheckpointError(f"the GGUF's tokenizer is {kind[0]} with splitter {kind[1]}, expected gpt2, {_SPLITTER}")
    texts = read_field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in read_field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={text: id_ for id_, text in enumerate(texts)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = read_field(reader, "tokenizer.ggml.token_type")
    control = [text for text, kind in zip(texts, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in IMAGE_TOKENS])
    return tokenizer
