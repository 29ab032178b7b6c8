"""The part of a page that tells what other systems make of the same weights."""

from __future__ import annotations

from html import escape

from bundle.report import Replies, TeacherForced
from bundle.summary import megabytes
from pages.frame import table
from quant.comparison.rivals import Rival, Rivals, Speed
from quant.comparison.variants import REFERENCE, Siblings, Variant


def rival_section(siblings: Siblings) -> str:
    """Return a heading, a table and how it was measured for each other system; nothing where there is none."""
    return "".join(_system(siblings, rivals) for rivals in siblings.rivals)


FORCED_HEAD = ("KL mean", "NLL off by", "same first choice", "same replies")
"""What `forced_cells` are called."""


def forced_cells(forced: TeacherForced, replies: Replies) -> list[str]:
    """Return the cells that every table of language models has: KL, NLL, first choices, replies."""
    first = "" if replies.first_divergence is None else f"<small>part at token {replies.first_divergence:.1f}</small>"
    return [
        f"{forced.kl_mean:.4f}{_span(forced.kl_interval, '.4f')}<small>p99 {forced.kl_p99:.3f}</small>",
        _off_by(forced.delta_nll),
        f"{forced.top1_agreement:.2%}{_span(forced.top1_interval, '.2%')}<small>of {forced.num_tokens} tokens</small>",
        f"{replies.identical:.1%}{first}",
    ]


def _off_by(delta_nll: float) -> str:
    """Return how far a loss is from the parent's, and to which side: a variant that is surer is no better for it."""
    if f"{delta_nll:.4f}" in ("0.0000", "-0.0000"):
        return "0.0000"
    return f"{abs(delta_nll):.4f}<small>{'above' if delta_nll > 0 else 'below'} {REFERENCE}</small>"


def _span(interval: tuple[float, float] | None, form: str) -> str:
    """Return an interval on a line of its own, or nothing."""
    return "" if interval is None else f"<small>{interval[0]:{form}} to {interval[1]:{form}}</small>"


def _system(siblings: Siblings, rivals: Rivals) -> str:
    head = ("file", "language model", *FORCED_HEAD)
    speeds = (f"decode, x {REFERENCE}", f"prefill, x {REFERENCE}") if rivals.speed else ()
    rows = [_row(siblings, rival, has_speeds=bool(speeds)) for rival in (rivals.parity, *rivals.rivals)]
    return (
        f"<h2>{escape(rivals.system)} on the same weights</h2>"
        f"{table((*head, *speeds, 'best of ours at no more bytes'), rows)}{_method(siblings, rivals)}"
    )


def _row(siblings: Siblings, rival: Rival, *, has_speeds: bool) -> list[str]:
    size = f"{megabytes(rival.weight_bytes)}<small>file {megabytes(rival.file_bytes)}</small>{_error(rival)}"
    speeds = [_speed(rival.decode), _speed(rival.prefill)] if has_speeds else []
    quality = forced_cells(rival.teacher_forced, rival.replies)
    return [escape(rival.name), size, *quality, *speeds, _best_of_ours(siblings, rival)]


def _error(rival: Rival) -> str:
    if rival.weight_error is None:
        return ""
    told = "the parent's weights" if rival.keeps_weights else f"weights off by {rival.weight_error:.2%}"
    return f"<small>{told}</small>"


def _speed(speed: Speed | None) -> str:
    return "" if speed is None else f"{speed.ratio.median:.2f}<small>{speed.per_second.median:.0f} tokens/s</small>"


def _best_of_ours(siblings: Siblings, rival: Rival) -> str:
    """Return the variant with the least loss among those no larger than a file of another system."""

    def loss_of(variant: Variant) -> float:
        return variant.report.teacher_forced.kl_mean if variant.report and variant.report.teacher_forced else 0.0

    fitting = [
        variant
        for variant in siblings.variants
        if variant.report
        and variant.report.teacher_forced
        and variant.manifest.language_model_bytes <= rival.weight_bytes
    ]
    if not fitting:
        return '<span class="soft">none</span>'
    best = min(fitting, key=loss_of)
    return f"{escape(best.label)}<small>{megabytes(best.manifest.language_model_bytes)}, KL {loss_of(best):.4f}</small>"


def _method(siblings: Siblings, rivals: Rivals) -> str:
    ours = {report.evaluation for report in siblings.reports if report.evaluation}
    asked = f"{rivals.evaluation.num_samples} questions of {rivals.evaluation.source}"
    differ = (
        ' <span class="warn">Our variants were measured on other samples: compare with care.</span>'
        if ours - {rivals.evaluation}
        else ""
    )
    how = ""
    if speed := rivals.speed:
        how = (
            f" Speed: {speed.rounds} turns, {speed.threads} threads each, a prompt of {speed.prompt_tokens} tokens and "
            f"single tokens behind {speed.cached_tokens}; the {REFERENCE} bundle decoded "
            f"{speed.parent_decode.median:.0f} and read {speed.parent_prefill.median:.0f} tokens/s in these turns."
        )
    return (
        f'<p class="soft">{escape(rivals.system)} ({escape(rivals.version)}), given the token ids that the bundle '
        f"makes of {escape(asked)}, and held against the same {REFERENCE} bundle by the same code. The first row is "
        f"the parent's own weights in float32: what it differs by is arithmetic.{how} {escape(rivals.machine.cpu)}, "
        f"{rivals.machine.cores} cores.{differ}</p>"
    )
