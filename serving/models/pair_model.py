"""What scores pairs: the models of `/v1/rerank` that read both together."""

from __future__ import annotations

from abc import abstractmethod

from serving.models.one_pass import OnePassModel
from serving.protocol import ScoreRequest, ScoreResult


class PairModel(OnePassModel):
    """One model that says how well two inputs fit."""

    does = "scoring pairs"

    @abstractmethod
    async def score(self, request: ScoreRequest) -> ScoreResult:
        """Return how well each pair fits, in order.

        Raises:
            RequestError: A pair that the model does not read.
        """
