"""Marks agree with what greedy decoding says and with transformers' own loss; models are compared in pairs."""

from __future__ import annotations

import pytest

from commands.shipped import CHECKPOINTS
from reference.scenes import TASKS, held_out


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    """Import what trains here, so that collecting takes none of it."""
    global torch, compare_experts, mote, Reader, load_vlm, Mark, Marker
    torch = pytest.importorskip("torch", reason="training needs the [train] extra")
    pytest.importorskip("transformers", reason="training needs the [train] extra")

    from reference import compare_experts, mote
    from reference.evaluate import Reader
    from reference.lessons import load_vlm
    from reference.marking import Mark, Marker


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(CHECKPOINTS["vlm"])


def test_marks_say_what_greedy_decoding_says(reader: Reader) -> None:
    for task, n in (("caption", 15), ("chat", 4), ("compare", 4)):
        examples = held_out(task, n)
        marks = Marker(reader.processor).marks(reader.model, examples)
        wanted = [e.is_right(r) for e, r in zip(examples, reader.replies(examples), strict=True)]
        assert [mark.is_right for mark in marks] == wanted
        assert [mark.task for mark in marks] == [task] * n
        if task == "caption":
            assert set(wanted) == {True, False}


def test_likelihood_of_an_answer_equals_transformers_loss(reader: Reader) -> None:
    captions = held_out("caption", 6)
    marks = Marker(reader.processor).marks(reader.model, [*captions, held_out("compare", 1)[0]])
    nll, example = max(zip((m.nll for m in marks), captions, strict=False), key=lambda pair: pair[0])
    prompt = reader.processor.apply_chat_template(example.messages(), add_generation_prompt=True)
    answer = f" {example.answer}<end_of_utterance>"
    inputs = reader.processor(text=prompt + answer, images=list(example.images), return_tensors="pt")
    labels = inputs["input_ids"].clone()
    answer_tokens = len(reader.processor.tokenizer(answer)["input_ids"])
    labels[:, :-answer_tokens] = -100
    with torch.inference_mode():
        wanted = float(reader.model(**inputs, labels=labels).loss) * answer_tokens
    assert wanted > 0.1  # an answer that the model is sure of would hide an error
    # float32 logits near 12, summed in another order beside a longer conversation
    assert nll == pytest.approx(wanted, abs=1e-3)


def marked(*rights: bool) -> list[Mark]:
    return [Mark(task, right, 0.0) for task in TASKS for right in rights]


def test_a_model_does_not_differ_from_itself() -> None:
    marks = marked(True, False, True)
    assert compare_experts.interval(marks, marks) == (0.0, 0.0)
    found = compare_experts.compared(marks, marks, 0)
    assert (found.difference, found.accuracy) == (0.0, pytest.approx(2 / 3))


def test_paired_interval_equals_the_normal_one_for_many_questions() -> None:
    # 400 questions a task: the first model alone is right on 40, the second alone on 20
    first = marked(*[True] * 40, *[False] * 20, *[True] * 340)
    second = marked(*[False] * 40, *[True] * 20, *[True] * 340)
    low, high = compare_experts.interval(first, second)
    deviation = ((40 + 20) / 400 - 0.05**2) ** 0.5 / (400 * len(TASKS)) ** 0.5
    # 2,000 resamples place a 2.5 % quantile to about 5 % of the deviation
    assert low == pytest.approx(0.05 - 1.96 * deviation, abs=0.15 * deviation)
    assert high == pytest.approx(0.05 + 1.96 * deviation, abs=0.15 * deviation)


def test_rounding_changes_routed_experts_only() -> None:
    model = load_vlm(CHECKPOINTS["vlm"])
    mote.upcycle(model, mote.ExpertShape(4, 704, "float"), seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    compare_experts.rounded(model, compare_experts.absmean_ternary)
    for name, parameter in model.named_parameters():
        is_expert = ".experts." in name
        assert torch.equal(parameter, before[name]) != is_expert, name
        assert not is_expert or parameter.unique().numel() == 3


def test_bytes_count_every_matrix_of_every_routed_expert() -> None:
    model = load_vlm(CHECKPOINTS["vlm"])
    assert compare_experts.expert_bytes(model, "") == 0
    mote.upcycle(model, mote.ExpertShape(4, 704, "float"), seed=0)
    assert compare_experts.expert_bytes(model, "2") == 4 * 4 * 3 * 256 * 704 // 4
