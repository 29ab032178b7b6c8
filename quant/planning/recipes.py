"""What `--weights NAME[,component=NAME...]` asks for: the table of names, and the reading of the option."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bundle.errors import QuantizationError
from bundle.manifest import ENCODER_ROLES, ComponentName, Manifest, Scheme

Calibration = Literal["none", "peaks", "grams"]
"""What a recipe must know of the inputs of layers: nothing, channel peaks, or their second moments as well."""

_LINEAR: tuple[ComponentName, ...] = (*ENCODER_ROLES, "decoder")
_EVERY: tuple[ComponentName, ...] = (*_LINEAR, "embed_tokens")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one name asks of the component that it is given to, and what the others get under it.

    Attributes:
        scheme: The manifest's word for a component of this recipe.
        bits: Of the linear layers.
        summary: One line for help and tables.
        method: The pass of linear layers, a name of `quant.weights.table.PASSES`, or "fp32".
        portable_method: The same in the portable dialect; None where it has none.
        blocks: Preferred first; empty for one scale per output. A recipe that refines takes the first that fits: times
            do not choose.
        rounding: A name of `quant.rounding.table.ROUNDINGS`.
        scaling: A name of `quant.scaling.table.SCALINGS`, or None.
        calibration: What must be known of the inputs.
        fits: Components that may be given this name.
        encoder: The recipe of encoders under it.
        head: The recipe of the vocabulary's scores under it.
        table: The recipe of embedding tables under it.
        refines: In a decoder, calibration samples make it better (`quant.planning.refinement`); it does without.
        is_experimental: Known to lose quality unless the checkpoint was trained for it.
    """

    scheme: Scheme
    bits: int
    summary: str
    method: str
    portable_method: str | None = None
    blocks: tuple[int, ...] = ()
    rounding: str = "rtn"
    scaling: str | None = None
    calibration: Calibration = "none"
    fits: tuple[ComponentName, ...] = _LINEAR
    encoder: str = "int8"
    head: str = "int8"
    table: str = "int8"
    refines: bool = False
    is_experimental: bool = False


def _four_bits(
    summary: str, rounding: str, calibration: Calibration = "none", scaling: str | None = None, *, refines: bool = False
) -> Recipe:
    is_plain = calibration == "none" and rounding == "rtn"
    return Recipe(
        scheme="int4",
        bits=4,
        summary=summary,
        method="matmul_nbits",
        portable_method=None if rounding == "hqq" else "qdq_int4",
        blocks=(32, 64, 128) if refines else (64, 128, 32),
        rounding=rounding,
        scaling=scaling,
        calibration=calibration,
        fits=_EVERY if is_plain else _LINEAR,
        head="int4" if refines else "int4-rtn",
        table="int4" if refines else "int4-rtn",
        refines=refines,
    )


def _two_bits(scheme: Scheme, summary: str, rounding: str, calibration: Calibration = "none") -> Recipe:
    return Recipe(
        scheme=scheme,
        bits=2,
        summary=summary,
        method="matmul_nbits",
        blocks=(128, 64, 32),
        rounding=rounding,
        calibration=calibration,
        head="int4-rtn",
        table="int4-rtn",
        is_experimental=True,
    )


RECIPES: dict[str, Recipe] = {
    "fp32": Recipe(
        scheme="fp32",
        bits=32,
        summary="as exported",
        method="fp32",
        portable_method="fp32",
        fits=_EVERY,
        encoder="fp32",
        head="fp32",
        table="fp32",
    ),
    "fp16": Recipe(
        scheme="fp16",
        bits=16,
        summary="float16, norms and softmax in float32; for CUDA and TensorRT",
        method="float16",
        portable_method="float16",
        fits=_EVERY,
        encoder="fp16",
        head="fp16",
        table="fp16",
    ),
    "int8": Recipe(
        scheme="int8",
        bits=8,
        summary="8-bit weights and activations, a scale per token; loud channels spread or in float",
        method="w8a8",
        portable_method="w8a8",
        fits=_EVERY,
        refines=True,
    ),
    "int8-rtn": Recipe(
        scheme="int8",
        bits=8,
        summary="8-bit weights and activations, a scale per token, rounded to nearest",
        method="w8a8",
        portable_method="w8a8",
        fits=_EVERY,
    ),
    "int8-static": Recipe(
        scheme="int8-static",
        bits=8,
        summary="8-bit weights and activations, calibrated scales",
        method="w8a8_static",
        portable_method="w8a8_static",
        scaling="smoothquant",
        calibration="peaks",
        encoder="int8-static",
    ),
    "int4": _four_bits("4-bit weights, errors fed forward; loud channels spread or in float", "rtn", refines=True),
    "int4-rtn": _four_bits("4-bit weights, rounded to nearest", "rtn"),
    "int4-hqq": _four_bits("4-bit weights, grids that let outliers go", "hqq"),
    "int4-gptq": _four_bits("4-bit weights, errors fed forward", "gptq", calibration="grams"),
    "int4-awq": _four_bits("4-bit weights, loud channels scaled up first", "rtn", calibration="grams", scaling="awq"),
    "nf4": Recipe(
        scheme="nf4", bits=4, summary="4-bit codes of bitsandbytes", method="bnb4", blocks=(64,), rounding="nf4"
    ),
    "fp4": Recipe(
        scheme="fp4", bits=4, summary="4-bit floats of bitsandbytes", method="bnb4", blocks=(64,), rounding="fp4"
    ),
    "int2": _two_bits("int2", "2-bit weights of four levels", "four-level"),
    "int2-gptq": _two_bits("int2", "2-bit weights, errors fed forward", "gptq", calibration="grams"),
    "ternary": _two_bits("ternary", "-a, 0, a, of least squared error", "ternary"),
    "ternary-mean": _two_bits("ternary", "ternary about a mean", "ternary-mean"),
    "ternary-planes": _two_bits("ternary", "the sum of two ternary planes", "ternary-planes"),
    "ternary-gptq": _two_bits("ternary", "ternary, errors fed forward", "ternary-gptq", calibration="grams"),
}
"""By the name that a user gives. Where one is given alone, `encoder`, `head` and `table` say what the rest becomes."""


@dataclass(frozen=True)
class Asked:
    """A `--weights` option as read.

    Attributes:
        default: A name in `RECIPES`.
        by_component: Names for single components.
    """

    default: str
    by_component: Mapping[ComponentName, str] = field(default_factory=dict)

    @property
    def keeps_all(self) -> bool:
        """Whether every weight stays what it is."""
        return {self.default, *self.by_component.values()} == {"fp32"}

    @property
    def label(self) -> str:
        """Return it in the letters of a model id: "int4", "int4-vision_encoder-fp32"."""
        return "-".join([self.default, *(f"{part}-{name}" for part, name in self.by_component.items())])

    def without(self, component: ComponentName) -> str:
        """Return the `--weights` that asks the same, but for one component that shall be int8."""
        others = {**self.by_component, component: "int8"}
        return ",".join([self.default, *(f"{part}={name}" for part, name in others.items())])

    def recipe_of(self, component: ComponentName) -> str:
        """Return the recipe's name of one component."""
        if component in self.by_component:
            return self.by_component[component]
        if component in ENCODER_ROLES:
            return RECIPES[self.default].encoder
        if component == "embed_tokens":
            return RECIPES[self.default].table
        return self.default


def read_weights(weights: str, manifest: Manifest, *, may_keep_all: bool = False) -> Asked:
    """Return what a `--weights` value asks of a bundle.

    Args:
        weights: The value.
        manifest: The bundle's.
        may_keep_all: Something else is made smaller.

    Raises:
        QuantizationError: A name or component is unknown, given twice, or does not fit, or nothing would change.
    """
    first, *others = [part.strip() for part in weights.split(",")]
    if "=" in first:
        raise QuantizationError(
            f"--weights {weights!r} begins with one component; begin with a name for the rest: NAME,{first}"
        )
    _require_known(first)
    by_component: dict[ComponentName, str] = {}
    for other in others:
        component, separator, name = other.partition("=")
        if not separator:
            raise QuantizationError(
                f"--weights: {other!r} is not component=NAME, as every part after the first must be"
            )
        found = _component_named(component, manifest)
        if found in by_component:
            raise QuantizationError(f"--weights names {component} twice; once is enough")
        by_component[found] = _fitting(name, found)
    asked = Asked(first, by_component)
    if asked.keeps_all and not may_keep_all:
        names = ", ".join(name for name in RECIPES if name != "fp32")
        raise QuantizationError(f"--weights {weights} changes nothing; name one of {names}, or --kv-cache int8")
    return asked


def known_weights() -> str:
    """Return all names for an error or a help text."""
    return ", ".join(RECIPES)


def _require_known(name: str) -> None:
    if name not in RECIPES:
        raise QuantizationError(f"unknown weights {name!r}; known: {known_weights()}")


def _component_named(component: str, manifest: Manifest) -> ComponentName:
    found = next((name for name in manifest.components if name == component), None)
    if found is None:
        raise QuantizationError(
            f"--weights names the component {component!r}; {manifest.name} has {', '.join(manifest.components)}"
        )
    return found


def _fitting(name: str, component: ComponentName) -> str:
    _require_known(name)
    if component not in RECIPES[name].fits:
        fitting = ", ".join(known for known, recipe in RECIPES.items() if component in recipe.fits)
        raise QuantizationError(f"{name} is not for {component}; what fits it: {fitting}")
    return name
