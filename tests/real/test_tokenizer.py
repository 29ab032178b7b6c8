"""The real decoder's tokenizer, rebuilt from its GGUF, against transformers' own reading of the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from bundle.prompt import PromptBuilder, Turn
from bundle.text import Tokenizer
from reference.real.tokens import IMAGE_TOKENS

pytestmark = pytest.mark.real

TEXTS = (
    "The year 1984, 3.14159 and ¾ of ١٢٣ — or Ⅳ.",
    "def f(x):\n\treturn x ** 2  # squared\n\n\n",
    "naïve café größe Straße; it's, I'll, WE'VE",
    "日本語のテキスト。中文，한국어",
    "مرحبا بالعالم",
    "👩‍👩‍👧‍👦 🙂🙃 \U0001f1eb\U0001f1f7",
    "   three spaces,\ttabs\u00a0and\u3000wide ones   ",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><file_sep>",
    "nul \x00 and bell \x07",
    "",
)


@pytest.fixture(scope="module")
def reference(gguf_file: Path) -> Any:
    """transformers' tokenizer of the file, with the splitter of digits that its conversion leaves out."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    return tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_texts_are_the_reference_s(text: str, checkpoint: Path, reference: Any) -> None:
    tokenizer = Tokenizer.from_file(checkpoint / "tokenizer.json")
    ids = tokenizer.encode(text)
    assert ids == reference(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_every_digit_is_a_token(checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(checkpoint / "tokenizer.json")
    assert [tokenizer.decode([id_]) for id_ in tokenizer.encode("1984")] == ["1", "9", "8", "4"]


def test_tokens_of_images_follow_the_file_s_own(checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(checkpoint / "tokenizer.json")
    assert [tokenizer.token_id(text) for text in IMAGE_TOKENS] == list(range(49_152, 49_152 + len(IMAGE_TOKENS)))


CONVERSATION = [
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Hi! What can I do?"},
    {"role": "user", "content": "Add 12 and 30."},
]


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]], ids=["no-system", "system"])
def test_prompts_are_those_of_the_decoder_s_own_template(
    system: list[dict[str, str]], bundle: Path, reference: Any
) -> None:
    from bundle.directory import open_bundle

    messages = [*system, *CONVERSATION]
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    builder = PromptBuilder.from_bundle(open_bundle(bundle, verify=False))
    prompt = builder.build([Turn(message["role"], (message["content"],)) for message in messages], [])
    assert prompt.token_ids.tolist() == list(expected)
