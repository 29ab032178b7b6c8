import pytest
from pydantic import ValidationError

from bundle.errors import BundleFormatError
from bundle.manifest import Component, Manifest, graph_name
from bundle.states import State

ROWS = {"input": "k", "output": "k2", "dtype": "float32", "shape": ("B", 2, "S", 3), "group": 0}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shape": ("B", 2, 3)}, "shape"),
        ({"shape": ("S", "B", 3)}, "shape"),
        ({"shape": ("B", "S", "T")}, "shape"),
        ({"shape": ("B", 0, "S")}, "at least 1"),
        ({"kind": "fixed"}, "shape"),
        ({"group": None}, "length group None"),
        ({"group": -1}, "length group -1"),
        ({"kind": "fixed", "shape": ("B", 3), "group": 1}, "length group 1"),
        ({"dtype": "decimal"}, "'decimal' is none of float32"),
        ({"dtype": "i4,,"}, "'i4,,' is none of float32"),
        ({"dtype": "object"}, "'object' is none of float32"),
        ({"surprise": 1}, "surprise"),
        ({"scheme": "int2"}, "scheme"),
        ({"scheme": "int8"}, "codes of scheme 'int8' are rows of int8"),
        ({"scheme": "int4", "dtype": "int8"}, "codes of scheme 'int4' are rows of uint8"),
        ({"scheme": "int8", "dtype": "int8", "shape": ("B", 2, "S")}, "whose channels come last"),
        ({"scheme": "int8", "dtype": "int8", "kind": "fixed", "shape": ("B", 3), "group": None}, "are rows of int8"),
    ],
)
def test_a_state_that_means_nothing_is_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        State.model_validate({**ROWS, **change})


def test_a_state_knows_its_sizes_and_its_rows() -> None:
    rows = State.model_validate(ROWS)
    assert (rows.sizes(4, 7), rows.row_axis, rows.num_bytes) == ((4, 2, 7, 3), 2, 24)
    fixed = State(input="c", output="c2", kind="fixed", dtype="float16", shape=("B", 5))
    assert (fixed.sizes(4, 7), fixed.num_bytes) == ((4, 5), 10)


def test_a_state_of_codes_takes_its_bits_and_no_more() -> None:
    rows = State.model_validate({**ROWS, "shape": ("B", 2, "S", 6)})
    coded = {scheme: rows.coded(scheme) for scheme in ("float", "int8", "int4")}
    assert [state.num_bytes for state in coded.values()] == [48, 12, 6]
    assert [state.dtype for state in coded.values()] == ["float32", "int8", "uint8"]
    assert {state.scale_shape for state in coded.values()} == {(2, 6)}
    fixed = State(input="c", output="c2", kind="fixed", dtype="float32", shape=("B", 5))
    assert fixed.coded("int8") is fixed
    with pytest.raises(ValueError, match="two codes of 4 bits share a byte, and it has 3 channels"):
        State.model_validate(ROWS).coded("int4")


def component(role: str, phase: str = "any") -> Component:
    return Component(file="x.onnx", role=role, phase=phase, scheme="fp32", inputs=(), outputs=(), weight_bytes=0)


def test_a_graph_is_a_file_that_is_read_as_one() -> None:
    with pytest.raises(ValidationError, match="file"):
        component("decoder").model_validate({**component("decoder").model_dump(), "file": "decoder.ort"})


def manifest(**changes: object) -> Manifest:
    facts = dict.fromkeys(("name", "source", "source_sha256", "created_by", "model_type"), "t")
    values = {"task": "image-text-to-text", "dialect": "contrib", "components": {"decoder": component("decoder")}}
    return Manifest.model_validate({**facts, **values, **changes})


def test_a_graph_is_found_by_its_role_and_phase() -> None:
    both = manifest(components={"steps": component("decoder", "step"), "reads": component("decoder", "prompt")})
    assert (both.graph("decoder", "prompt"), both.graph("decoder", "step")) == ("reads", "steps")
    assert manifest().graph("decoder", "prompt") == manifest().graph("decoder") == "decoder"
    with pytest.raises(BundleFormatError, match="no graph with the role text_encoder, only decoder"):
        manifest().graph("text_encoder")
    assert [graph_name("decoder", phase) for phase in ("any", "step", "prompt")] == [
        "decoder",
        "decoder",
        "decoder_prefill",
    ]


@pytest.mark.parametrize("phases", [("any", "prompt"), ("step",), ("prompt",), ("any", "any")])
def test_a_role_whose_phases_are_run_twice_or_never_is_refused(phases: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="one must"):
        manifest(components={str(at): component("decoder", phase) for at, phase in enumerate(phases)})


def test_length_groups_count_up_from_zero() -> None:
    states = [State.model_validate({**ROWS, "input": name, "group": at}) for name, at in (("a", 0), ("b", 2))]
    with pytest.raises(ValidationError, match=r"length groups of the states are \[0, 2\]"):
        manifest(states=states)
    two = [states[0], State.model_validate({**ROWS, "group": 1})]
    assert (manifest(states=two).num_length_groups, manifest(states=two).state_bytes_per_token) == (2, 48)


def test_a_cache_is_of_one_scheme_and_named_by_it() -> None:
    rows = [State.model_validate({**ROWS, "input": name}) for name in "ab"]
    coded = [state.coded("int8") for state in rows]
    assert (manifest().cache_dtype, manifest(states=rows).cache_dtype, manifest(states=coded).cache_dtype) == (
        "",
        "float32",
        "int8",
    )
    assert manifest(states=coded).state_bytes_per_token * 4 == manifest(states=rows).state_bytes_per_token
    with pytest.raises(ValidationError, match="stored as float, int8; one scheme for all"):
        manifest(states=[rows[0], coded[1]])


def test_a_cache_of_codes_is_no_reference() -> None:
    rows = State.model_validate(ROWS)
    assert (manifest(states=[rows]).is_gated, manifest(states=[rows.coded("int8")]).is_gated) == (None, False)
