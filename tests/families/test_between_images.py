"""What stands between images and words where no template puts a blank between them."""

from __future__ import annotations

from typing import Any

from PIL import Image

from bundle.image import PREPROCESSOR, ImageSpec
from bundle.prompt import Placeholder, PromptBuilder, Turn
from bundle.text import TOKENIZER, Tokenizer

BARE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)


def test_neighbouring_images_of_idefics2_share_a_fake_token_and_a_word_behind_one_gets_a_blank(sample_of: Any) -> None:
    sample = sample_of("idefics2", 0)
    bundle = sample.bundle()
    tokenizer = Tokenizer.from_file(bundle.path(TOKENIZER))
    builder = PromptBuilder(tokenizer, BARE, bundle.manifest.image_prompt, {})
    image, spec = Image.new("RGB", (40, 30)), ImageSpec.read(bundle.path(PREPROCESSOR))
    parts = ("x", Placeholder.IMAGE, "y", Placeholder.IMAGE, Placeholder.IMAGE, " <z", Placeholder.IMAGE, "<z")
    found = builder.build([Turn("user", parts)], [spec.layout(*image.size)] * 4, add_generation_prompt=False)
    expected = sample.processor(text="x<image>y<image><image> <z<image><z", images=[image] * 4)["input_ids"][0]
    assert found.token_ids.tolist() == list(expected)
