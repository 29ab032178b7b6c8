"""The tokenizer of the vision-language model: byte-level BPE learnt from the generator's own sentences."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from reference.scenes import TASKS, ask, scenes_for

VOCABULARY_TOKENS = 640  # an upper limit; merges end when the sentences have no more
# "place" brings no words worth a token.
_CORPUS_TASKS = tuple(task for task in TASKS if task != "place")
_CORPUS_EXAMPLES = 4000  # per task
_MIN_FREQUENCY = 8
# The names SmolVLM uses, so that its processor and chat template work unchanged. Rows and columns belong to image
# splitting, which the shipped processor leaves off.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'] is string or message['content'][0]['type'] != 'image' %}{{ ': ' }}"
    "{% else %}{{ ':' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def _sentences() -> Iterator[str]:
    rng = random.Random(0)
    for task in _CORPUS_TASKS:
        for _ in range(_CORPUS_EXAMPLES):
            for turn in ask(task, scenes_for(task, rng, "train"), rng) or ():
                yield f"User:{turn.question}"
                yield f"User: {turn.question}\nAssistant: {turn.answer}\n"


def train(
    sentences: Iterable[str] | None = None, vocabulary_tokens: int = VOCABULARY_TOKENS
) -> PreTrainedTokenizerFast:
    """Return the tokenizer; the same sentences give the same one each time.

    Capitals and digits stand alone, so that a text in an image is spelt one token a character. All 256 bytes are in
    the vocabulary: no input is unknown.

    Args:
        sentences: What it is learnt from; None: what `scenes` asks and answers.
        vocabulary_tokens: An upper limit.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[A-Z0-9]"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_tokens,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences() if sentences is None else sentences, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
