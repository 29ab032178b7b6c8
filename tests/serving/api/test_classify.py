from __future__ import annotations

from typing import Any

import pytest

from bundle.zero_shot import TEMPLATES

CLASSIFY = "/v1/classify"


def test_labels_come_back_sorted_with_their_scores(api: Any, png: bytes, image_part: Any) -> None:
    labels = ["cat", "dog", "house", "tree"]
    body = api.post(CLASSIFY, {"model": "fake-clip", "images": [image_part(png)], "labels": labels}).json()
    ranked = body["data"][0]["labels"]
    scores = [item["score"] for item in ranked]
    assert {item["label"] for item in ranked} == set(labels)
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-6)  # float32 softmax over four labels


def test_a_labels_score_does_not_depend_on_its_place(api: Any, png: bytes, image_part: Any) -> None:
    def scores(labels: list[str]) -> dict[str, float]:
        body = {"model": "fake-clip", "images": [image_part(png)], "labels": labels}
        return {item["label"]: item["score"] for item in api.post(CLASSIFY, body).json()["data"][0]["labels"]}

    assert scores(["cat", "dog"]) == pytest.approx(scores(["dog", "cat"]), abs=1e-6)  # summed in another order


def test_each_image_is_classified(api: Any, png: bytes, image_part: Any) -> None:
    body = api.post(CLASSIFY, {"model": "fake-clip", "images": [image_part(png)] * 3, "labels": ["a", "b"]}).json()
    assert [item["index"] for item in body["data"]] == [0, 1, 2]


def test_the_template_reaches_the_engine(api: Any, png: bytes, image_part: Any) -> None:
    body = {"model": "fake-clip", "images": [image_part(png)], "labels": ["cat", "dog"]}
    plain = api.post(CLASSIFY, body).json()["data"]
    assert api.post(CLASSIFY, {**body, "prompt_template": "{}"}).json()["data"] == plain
    assert api.post(CLASSIFY, {**body, "prompt_template": "a drawing of {}"}).json()["data"] != plain


def test_templates_may_be_several_or_a_published_set(api: Any, png: bytes, image_part: Any) -> None:
    body = {"model": "fake-clip", "images": [image_part(png)], "labels": ["cat", "dog"]}
    two, both = (
        api.post(CLASSIFY, {**body, "prompt_template": each}).json()["data"] for each in ("a {}", ["a {}", "{}"])
    )
    assert two != both
    assert (
        api.post(CLASSIFY, {**body, "prompt_template": ["{}"]}).json()["data"]
        == api.post(CLASSIFY, body).json()["data"]
    )
    named = api.post(CLASSIFY, {**body, "prompt_template": "clip-80"}).json()["data"]
    assert named == api.post(CLASSIFY, {**body, "prompt_template": list(TEMPLATES["clip-80"])}).json()["data"]


def test_too_many_texts_of_labels_are_refused_before_the_work(api: Any, png: bytes, image_part: Any) -> None:
    body = {"model": "fake-clip", "images": [image_part(png)], "labels": [str(at) for at in range(126)]}
    error = api.post(CLASSIFY, {**body, "prompt_template": "clip-80"}).json()["error"]
    assert error["param"] == "prompt_template"
    assert "126 labels in 80 templates are 10080 texts" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"labels": ["a", 1]}, "labels.1"),
        ({"labels": ["a", None]}, "labels.1"),
        ({"labels": ["a", {"name": "b"}]}, "labels.1"),
        ({"labels": "a"}, "labels"),
        ({"labels": []}, "labels"),
        ({"labels": [""]}, "labels.0"),
        ({"labels": ["a", "a"]}, "labels"),
        ({"prompt_template": "no place"}, "prompt_template"),
        ({"prompt_template": "clip-81"}, "prompt_template"),
        ({"prompt_template": ["{}", "no place"]}, "prompt_template"),
        ({"prompt_template": []}, "prompt_template"),
        ({"images": []}, "images"),
        ({"images": ["data:image/png;base64,AAAA"]}, "images.0"),
        ({"top_k": 1}, "top_k"),
    ],
)
def test_what_cannot_be_classified_is_refused_by_name(
    api: Any, png: bytes, image_part: Any, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "fake-clip", "images": [image_part(png)], "labels": ["a", "b"], **fields}
    response = api.post(CLASSIFY, body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_more_labels_than_allowed_are_refused(make_caller: Any, png: bytes, image_part: Any) -> None:
    body = {"model": "fake-clip", "images": [image_part(png)], "labels": ["a", "b", "c"]}
    assert make_caller(max_labels=3).post(CLASSIFY, body).status_code == 200
    assert make_caller(max_labels=2).post(CLASSIFY, body).json()["error"]["param"] == "labels"
