"""What runs each input once and keeps nothing of it: models of vectors, and those that score pairs."""

from __future__ import annotations

from abc import abstractmethod

from bundle.errors import TaskError
from serving.models.model import Model
from serving.models.tokens import told_tokens
from serving.models.vision import VisionStage
from serving.protocol import TokenizeRequest, TokenizeResult


class OnePassModel(Model):
    """One model without a cache.

    Attributes:
        _vision: Encodes its images; None where it reads none, or reads them in the same graph as its texts.
    """

    _vision: VisionStage | None = None

    @property
    def gauges(self) -> dict[str, float]:
        """Numbers for `/metrics`."""
        return {
            "num_requests_running": float(self._admission.num_admitted),
            **({} if self._vision is None else self._vision.gauges),
            "num_preprocess_waiting": float(self._pool.num_preprocess_waiting),
        }

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResult:
        """Return the tokens of a text as the model reads it.

        Raises:
            TaskError: A conversation is none.
            ContextLengthError: The text is far longer than any that is read.
        """
        if request.text is None:
            raise TaskError(
                f"{self._manifest.name} is for {self.does}; it reads no conversations. Send prompt.", "messages"
            )
        ids = await self._pool.text.run(request.request_id, self._ids, request.text, request.adds_special_tokens)
        return told_tokens(self.tokenizer, ids)

    @abstractmethod
    def _ids(self, text: str, adds_special_tokens: bool) -> list[int]:
        """Return a text's ids, bare or with all that the model reads around it; runs on the pool.

        Raises:
            ContextLengthError: The text is far longer than any that is read.
        """
