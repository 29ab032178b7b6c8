from __future__ import annotations

import re
from pathlib import Path

import pytest

from bundle.directory import read_manifest
from bundle.errors import QuantizationError
from bundle.form import Form
from bundle.manifest import Manifest
from quant.planning.recipes import RECIPES, read_weights
from quant.planning.refinement import DOUBLING, FED
from quant.quality.gate import LIMITS
from quant.rounding.table import ROUNDINGS
from quant.scaling.table import SCALINGS
from quant.weights.bnb4 import KINDS
from quant.weights.qdq_int4 import positive
from quant.weights.table import PASSES


@pytest.fixture
def manifest(smolvlm_bundle: Path) -> Manifest:
    return read_manifest(smolvlm_bundle)


def test_one_name_says_what_every_component_becomes(manifest: Manifest) -> None:
    asked = read_weights("ternary", manifest)
    assert {name: asked.recipe_of(name) for name in manifest.components} == {
        "vision_encoder": "int8",
        "embed_tokens": RECIPES["ternary"].table,
        "decoder": "ternary",
    }


def test_a_component_that_is_named_is_obeyed(manifest: Manifest) -> None:
    asked = read_weights("int8, vision_encoder=int4 ,decoder=int4-gptq", manifest)
    assert asked.recipe_of("vision_encoder") == "int4"
    assert asked.recipe_of("decoder") == "int4-gptq"
    assert asked.recipe_of("embed_tokens") == "int8"
    assert asked.label == "int8-vision_encoder-int4-decoder-int4-gptq"


def test_float_weights_for_one_component_leave_the_others_as_they_would_be(manifest: Manifest) -> None:
    asked = read_weights("int4,decoder=fp32", manifest)
    assert asked.recipe_of("decoder") == "fp32"
    assert asked.recipe_of("vision_encoder") == "int8"


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("int3", r"unknown weights 'int3'; known: fp32, fp16, int8, int8-rtn, int8-static, int4"),
        ("", r"unknown weights ''; known"),
        ("int8,decoder=int3", r"unknown weights 'int3'; known"),
        ("decoder=int4", r"begin with a name for the rest: NAME,decoder=int4"),
        ("int8,int4", r"'int4' is not component=NAME"),
        ("int8,text_encoder=int4", r"'text_encoder'; .* has vision_encoder, embed_tokens, decoder"),
        ("int8,decoder=int4,decoder=int8", r"names decoder twice"),
        ("fp32", r"fp32 changes nothing; name one of"),
        (
            "int8,embed_tokens=ternary",
            r"ternary is not for embed_tokens; what fits it: fp32, fp16, int8, int8-rtn, int4, int4-rtn$",
        ),
    ],
)
def test_what_cannot_be_read_is_answered_with_what_can(manifest: Manifest, weights: str, words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        read_weights(weights, manifest)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_what_exists(name: str) -> None:
    recipe = RECIPES[name]
    assert {recipe.encoder, recipe.head, recipe.table} <= RECIPES.keys()
    assert recipe.method in {*PASSES, "fp32"}
    assert recipe.portable_method in {*PASSES, "fp32", None}
    assert recipe.rounding in {*ROUNDINGS, *KINDS}
    assert recipe.scaling in {*SCALINGS, None}


def test_every_rounding_is_reached_by_a_recipe() -> None:
    reached = {recipe.rounding for recipe in RECIPES.values()} | set(FED.values()) | set(DOUBLING.values())
    portable = {recipe.rounding for recipe in RECIPES.values() if recipe.portable_method == "qdq_int4"}
    assert reached | {positive(Form(4, 32, name)).rounding for name in portable} >= ROUNDINGS.keys()


def test_recipes_of_two_bits_are_experimental_and_no_others() -> None:
    assert {name for name, recipe in RECIPES.items() if recipe.is_experimental} == {
        name for name, recipe in RECIPES.items() if recipe.bits == 2
    }


def test_the_commands_help_names_every_recipe() -> None:
    from commands.quantize import WEIGHTS_HELP

    named = re.findall(r"[a-z]+[0-9]*[a-z0-9-]*", WEIGHTS_HELP.split("Names: ")[1])
    assert set(named) - {"experimental"} == RECIPES.keys()


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"fp32"}))
def test_every_recipe_has_limits(name: str) -> None:
    assert name in LIMITS
