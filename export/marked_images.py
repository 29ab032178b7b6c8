"""Models whose tokenizer has no token for an image: their code cuts prompts at a mark and puts features there."""

from __future__ import annotations

from collections.abc import Mapping

from export.authors.conversation import IMAGE
from export.nn.linear import Embedding
from export.nn.module import Module
from export.vision_language import VisionLanguage


class MarkedImages(VisionLanguage):
    """The mark of an image is a token behind the tokenizer's own; where the table of words has no row for it, it gets
    one that nothing reads.
    """

    reads_vocabulary = True
    cuts_at_images = True

    @property
    def _num_rows(self) -> int:
        """Of the table of words, with one for the image token."""
        return max(self.decoder.config.vocab_size, 1 + max(self._with_image.values(), default=-1))

    @property
    def _with_image(self) -> Mapping[str, int]:
        return {**self.stated_ids, **self.own_tokens(self.stated_ids)} if self.stated_ids else {}

    @property
    def vocab_size(self) -> int:
        """Ids that a prompt may hold are below it; scores are of the decoder's own."""
        return self._num_rows

    def own_tokens(self, ids: Mapping[str, int]) -> Mapping[str, int]:
        """Return the token that marks an image, behind the others, unless the tokenizer has it."""
        return {} if IMAGE in ids else {IMAGE: max(ids.values()) + 1}

    def table(self) -> Module:
        """Return the table of words, longer by a row where the image token's is lacking."""
        sizes = self.decoder.config
        if self._num_rows == sizes.vocab_size:
            return super().table()
        name = f"{self.text_prefix}.embed_tokens"
        return Embedding(
            self._num_rows,
            sizes.hidden_size,
            name=name,
            scale=self.decoder.embedding_scale,
            num_stored=sizes.vocab_size,
        )
