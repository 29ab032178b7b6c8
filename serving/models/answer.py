"""Token ids to text that is safe to show: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bundle.detokenizer import Detokenizer
from bundle.token_bytes import BytesDetokenizer
from serving.protocol import SamplingParams


class StopText:
    """Passes text through until the first of some stop strings, holding back a tail that may become one.

    Args:
        stops: None of them empty.
        includes_stop: The text that passes ends behind the stop string, and not before it.

    Attributes:
        stopped_by: The stop string that is complete; None until one is.
    """

    def __init__(self, stops: Sequence[str], *, includes_stop: bool = False) -> None:
        self._stops = tuple(stops)
        self._includes_stop = includes_stop
        self._held = ""
        self.stopped_by: str | None = None

    @property
    def is_stopped(self) -> bool:
        """True once a stop string is complete."""
        return self.stopped_by is not None

    def push(self, text: str) -> str:
        """Return what of the text so far may be shown now; after a stop string, nothing more ever."""
        if self.is_stopped:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [(place + len(stop), place, stop) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            end, start, self.stopped_by = min(found)  # the one complete first, however the text was cut into pieces
            return self._show(end if self._includes_stop else start)
        return self._show(len(self._held) - self._num_undecided())

    def finish(self) -> str:
        """Return what was held back: the text ended without completing a stop string."""
        return "" if self.is_stopped else self._show(len(self._held))

    def _show(self, end: int) -> str:
        shown, self._held = self._held[:end], self._held[end:]
        return shown

    def _num_undecided(self) -> int:
        """Length of the longest tail that begins some stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


class AnswerText:
    """One answer as it grows: token ids in, text out.

    Args:
        detokenizer: Fresh.
        eos_ids: The model's own end tokens, which are no part of the text.
        sampling: What else ends the answer, after how many tokens, and whether the text holds it.
        lead: Left out where the text begins with it.

    Attributes:
        num_tokens: Pushed so far.
    """

    def __init__(
        self,
        detokenizer: Detokenizer | BytesDetokenizer,
        eos_ids: Collection[int],
        sampling: SamplingParams,
        lead: str = "",
    ) -> None:
        self._detokenizer = detokenizer
        self._lead = lead
        self._without_text = frozenset(eos_ids) | frozenset(() if sampling.includes_stop else sampling.stop_token_ids)
        self._stop_text = StopText(sampling.stop, includes_stop=sampling.includes_stop)
        self._min_tokens = sampling.min_tokens
        self.num_tokens = 0

    @property
    def is_stopped(self) -> bool:
        """True once a stop string is complete."""
        return self._stop_text.is_stopped

    @property
    def stopped_by(self) -> str | None:
        """The stop string that is complete; None until one is."""
        return self._stop_text.stopped_by

    def push(self, token_id: int) -> str:
        """Return the text that this token makes safe to show; often empty. The first `min_tokens` stop nothing."""
        self.num_tokens += 1
        if token_id in self._without_text:
            return ""
        text = self._detokenizer.push([token_id])
        if text and self._lead:
            text, self._lead = self._without_lead(text)
        return text if self.num_tokens <= self._min_tokens else self._stop_text.push(text)

    def _without_lead(self, text: str) -> tuple[str, str]:
        """Return a beginning without the lead, and what of the lead may still come."""
        if self._lead.startswith(text):
            return "", self._lead[len(text) :]
        return text.removeprefix(self._lead), ""

    def finish(self) -> str:
        """Return what was held back until now."""
        return self._stop_text.push(self._detokenizer.finish()) + self._stop_text.finish()
