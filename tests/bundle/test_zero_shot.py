from __future__ import annotations

import pytest

from bundle.zero_shot import SLOT, TEMPLATES, label_text, spelled_out


@pytest.mark.parametrize(
    ("template", "label", "expected"),
    [
        ("a photo of {}", "a cat", "a photo of a cat"),
        ("{}, or more of {}", "it", "it, or more of it"),
        ("a photo of {}", "{x} and {0}", "a photo of {x} and {0}"),
        ("a photo of {}", "{}", "a photo of {}"),
        ("{name} of {}", "a } or a {", "{name} of a } or a {"),
        ("{{}}", "set", "{set}"),
        ("%s {} \\1", "%d", "%s %d \\1"),
    ],
)
def test_a_label_stands_in_every_slot_and_other_braces_are_letters(template: str, label: str, expected: str) -> None:
    assert label_text(template, label) == expected


def test_a_published_set_is_spelled_out_in_its_place() -> None:
    assert spelled_out(["one {}", "clip-80", "{} two"]) == ("one {}", *TEMPLATES["clip-80"], "{} two")


def test_the_set_of_clip_has_eighty_different_templates_of_one_slot() -> None:
    templates = TEMPLATES["clip-80"]
    assert len(set(templates)) == len(templates) == 80
    assert all(template.count(SLOT) == 1 and template.strip() == template for template in templates)
    assert {"a photo of a {}.", "itap of my {}.", "the {} in a video game."} <= set(templates)
