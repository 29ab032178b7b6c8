"""How much of what a variant is measured on its calibration samples resemble."""

from __future__ import annotations

from collections.abc import Iterator

from bundle.directory import Bundle
from bundle.text import TOKENIZER, Tokenizer
from quant.calibration.feeds import NUM_SAMPLES, spread
from quant.quality.evaluation import Evaluation, turns_of

MOST_UNSEEN = 0.65
"""Share of tokens never met above which samples are told to be of another kind. By SmolLM2's tokenizer the built-in
kinds, four to twelve samples each, leave 0.1 to 0.6 of the tokens of the same kind's other half unmet (German 0.71, for
its four are few); English ones leave 0.77 of Spanish, 0.78 of German and 0.91 to 1 of Russian, Arabic, Chinese and
Japanese; one whole half leaves 0.28 of the other."""


def unseen_share(bundle: Bundle, calibration: Evaluation, evaluation: Evaluation) -> float | None:
    """Return the share of an evaluation's text tokens that calibration never meets; None where there is no text,
    or the model reads none.
    """
    if bundle.manifest.image_vectors is not None:
        return None
    tokenizer = Tokenizer.from_file(bundle.path(TOKENIZER))
    seen = {token for text in _texts(calibration, NUM_SAMPLES) for token in tokenizer.encode(text)}
    tokens = [token for text in _texts(evaluation) for token in tokenizer.encode(text)]
    return sum(token not in seen for token in tokens) / len(tokens) if tokens else None


def unlike(bundle: Bundle, calibration: Evaluation, evaluation: Evaluation) -> str:
    """Return a warning where calibration hardly resembles what is measured; else nothing."""
    unseen = unseen_share(bundle, calibration, evaluation)
    if unseen is None or unseen <= MOST_UNSEEN:
        return ""
    return (
        f"{unseen:.0%} of the tokens of {evaluation.source} never occur in {calibration.source} (told above "
        f"{MOST_UNSEEN:.0%}): another language or subject? Weights are fitted to the latter. Pass --calibration "
        "FILE.jsonl with samples like those that are measured"
    )


def _texts(samples: Evaluation, most: int | None = None) -> Iterator[str]:
    """Yield every text of samples, or of at most so many of each kind, as calibration takes them."""
    questions, captions = samples.questions, [*(each.caption for each in samples.captions), *samples.texts]
    captions += [text for each in samples.passages for text in (each.query, each.document)]
    captions += [text for task in samples.labelled.values() for text in task.candidates]
    for question in questions if most is None else spread(questions, most):
        yield from (part for turn in turns_of(question) for part in turn.parts if isinstance(part, str))
        yield question.answer
    yield from captions if most is None else spread(captions, most)
