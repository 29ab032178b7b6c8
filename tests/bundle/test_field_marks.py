"""Fields of documents: read as transformers' DonutProcessor reads them, whatever an answer holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.field_marks import read_fields
from bundle.grounding import FieldGrounding

VALUES = ("<no/>", "<yes/>")
PARTS = (
    "<s_a>",
    "</s_a>",
    "<s_b>",
    "</s_b>",
    "<S_A>",
    "</S_a>",
    "<sep/>",
    "<yes/>",
    "<s_",
    "</s_",
    ">",
    "x",
    " ",
    "\n",
)


@pytest.fixture(scope="module")
def reference() -> Any:
    """transformers' reading, which wants no processor but the names of added tokens."""
    from transformers import DonutProcessor

    unbound = SimpleNamespace()
    unbound.token2json = lambda *given, **named: DonutProcessor.token2json(unbound, *given, **named)
    return lambda text: unbound.token2json(text, added_vocab=dict.fromkeys((*VALUES, "<sep/>", "<s_a>"), 0))


@pytest.mark.parametrize(
    "text",
    [
        "<s_menu><s_nm>Tea</s_nm><s_price>3</s_price><sep/><s_nm>Cake</s_nm></s_menu><s_total>9</s_total>",
        "<s_q>what?</s_q><s_a>a<sep/> b <sep/><yes/></s_a>",
        "<s_a>never closed",
        "no fields at all",
        "<s_a></s_a>",
        "<s_a>x</s_a><sep/>",
        "<s_a><s_b></s_a></s_b>",
        "",
    ],
)
def test_answers_are_read_as_the_reference_reads_them(text: str, reference: Any) -> None:
    assert read_fields(text, VALUES) == reference(text)


@given(parts=st.lists(st.sampled_from(PARTS), max_size=14))
def test_whatever_is_said_is_read_alike(parts: list[str], reference: Any) -> None:
    text = "".join(parts)
    assert read_fields(text, VALUES) == reference(text)


def test_a_question_is_a_field_beside_its_answer() -> None:
    marks = FieldGrounding(question="<s_docvqa><s_question>{question}</s_question><s_answer>")
    both = {"question": "how much?", "answer": "9"}
    for asked in ("how much?", "<s_docvqa><s_question>how much?</s_question><s_answer>"):
        assert marks.read("9</s_answer>", asked).fields == both
    assert marks.read("<s_total>9</s_total>", "<s_receipt>").fields == {"total": "9"}
    assert marks.read("9</s_answer>").text == "9"


def test_fields_within_fields_have_a_bottom() -> None:
    deep = "<s_a>" * 5000 + "x" + "</s_a>" * 5000
    assert "a" in FieldGrounding().read(deep).fields
