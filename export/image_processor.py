"""A Hugging Face image processor's settings to `bundle.image.ImageSpec`, or a refusal that names the setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from bundle.errors import UnsupportedConfigError
from bundle.image import Cropped, Fixed, Geometry, ImageSpec, Resample, Tiled

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)

_CLIP_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
    "do_pad": False,
}
_SIGLIP_DEFAULTS: dict[str, Any] = {
    **_CLIP_DEFAULTS,
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "image_mean": _HALF,
    "image_std": _HALF,
}
_TILED_DEFAULTS: dict[str, Any] = {
    **_SIGLIP_DEFAULTS,
    "size": {"longest_edge": 4 * 364},
    "resample": 1,
    "max_image_size": {"longest_edge": 364},
    "do_image_splitting": True,
    "do_pad": True,
}

_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP_DEFAULTS,
    "CLIPFeatureExtractor": _CLIP_DEFAULTS,
    "LlavaImageProcessor": _CLIP_DEFAULTS,
    "SiglipImageProcessor": _SIGLIP_DEFAULTS,
    "Idefics3ImageProcessor": _TILED_DEFAULTS,
    "SmolVLMImageProcessor": _TILED_DEFAULTS,
}
"""Processor class, less its "Fast" or "Pil" ending, to the defaults it has in transformers 5."""

_CLASS_OF_MODEL = {
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "llava": "LlavaImageProcessor",
    "idefics3": "Idefics3ImageProcessor",
    "smolvlm": "SmolVLMImageProcessor",
}
"""Model type to the class that transformers takes where a processor file names none."""

_WITHOUT_EFFECT = frozenset(
    {
        "do_convert_rgb",  # every image is RGB before preprocessing
        "image_processor_type",
        "feature_extractor_type",
        "processor_class",
        "data_format",
        "input_data_format",
        "default_to_square",
        "return_tensors",
        "return_row_col_info",
        "model_input_names",
        "disable_grouping",
        "device",
        "num_additional_image_tokens",
        "auto_map",
        "use_fast",
        "image_seq_length",
        "video_sampling",
        "_valid_processor_keys",
    }
)
"""Settings of these classes that do not change `pixel_values`."""


def read_image_spec(settings: Mapping[str, Any], source: str, model_type: str | None = None) -> ImageSpec:
    """Return the preprocessing that the settings describe.

    Args:
        settings: `preprocessor_config.json`, or `image_processor` inside `processor_config.json`.
        source: Where they were read, for messages.
        model_type: Of the checkpoint's config; tells the class where the settings do not.

    Raises:
        UnsupportedConfigError: An unknown class or setting, or a value that is not reproduced.
    """
    name = _class_name(settings, source, model_type)
    _check_known(settings, _DEFAULTS[name], source)
    full = {**_DEFAULTS[name], **{key: value for key, value in settings.items() if value is not None}}
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if not full[key]:
            raise UnsupportedConfigError(f"{source}: {key} is false; only true is supported")
    is_tiled = _DEFAULTS[name] is _TILED_DEFAULTS
    return ImageSpec(
        geometry=_tiled(full, source) if is_tiled else _single(full, source),
        resample=_resample(full["resample"], source),
        rescale_factor=float(full["rescale_factor"]),
        mean=_per_channel(full["image_mean"], "image_mean", source),
        std=_per_channel(full["image_std"], "image_std", source),
    )


def _class_name(settings: Mapping[str, Any], source: str, model_type: str | None) -> str:
    stated = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    if stated is None:
        stated = _CLASS_OF_MODEL.get(model_type or "")
    name = str(stated)
    for ending in ("Fast", "Pil"):
        name = name.removesuffix(ending)
    if name not in _DEFAULTS:
        raise UnsupportedConfigError(
            f"{source}: image_processor_type {stated!r} is not supported; known are {', '.join(sorted(_DEFAULTS))}. "
            "Where the file names none, add the one that the model was trained with."
        )
    return name


def _check_known(settings: Mapping[str, Any], defaults: Mapping[str, Any], source: str) -> None:
    for key, value in settings.items():
        if key in defaults or key in _WITHOUT_EFFECT or value is None:
            continue
        # Only tiling processors read these; the others carry them as dead weight that must at least be off
        if key in _TILED_DEFAULTS and not value:
            continue
        raise UnsupportedConfigError(f"{source}: {key} = {value!r} is not supported by this exporter")


def _single(full: Mapping[str, Any], source: str) -> Geometry:
    if full["do_pad"]:
        raise UnsupportedConfigError(f"{source}: do_pad is true (padding to a square); only false is supported")
    size = _sides(full["size"], "size", source)
    if isinstance(full["size"], int) and full.get("default_to_square"):
        size = (full["size"], full["size"])
    crop = _sides(full["crop_size"], "crop_size", source) if full["do_center_crop"] else None
    if isinstance(size, tuple):
        if crop not in (None, size):
            raise UnsupportedConfigError(
                f"{source}: crop_size {full['crop_size']} differs from size {full['size']}; after a resize to a fixed "
                "size only the same crop is supported"
            )
        return Fixed(height_px=size[0], width_px=size[1])
    if not isinstance(crop, tuple):
        raise UnsupportedConfigError(
            f"{source}: size {full['size']} with crop_size {full['crop_size'] if full['do_center_crop'] else None}: "
            "pixel_values would have no fixed size; a centre crop to height and width is needed"
        )
    return Cropped(shortest_edge_px=size, height_px=crop[0], width_px=crop[1])


def _sides(value: Any, key: str, source: str) -> int | tuple[int, int]:
    """Return a shortest edge, or (height, width)."""
    if isinstance(value, int):  # the oldest files: the shortest edge, or the side of a square crop
        return value if key == "size" else (value, value)
    if isinstance(value, Mapping):
        if set(value) == {"shortest_edge"} and key == "size":
            return int(value["shortest_edge"])
        if set(value) == {"height", "width"}:
            return int(value["height"]), int(value["width"])
    raise UnsupportedConfigError(
        f"{source}: {key} = {value!r} is not supported; give shortest_edge, or height and width"
    )


def _tiled(full: Mapping[str, Any], source: str) -> Geometry:
    if full["do_center_crop"]:
        raise UnsupportedConfigError(f"{source}: do_center_crop is true; tiles are never cropped")
    edges: dict[str, int] = {}
    for key in ("size", "max_image_size"):
        value = full[key]
        if not isinstance(value, Mapping) or set(value) != {"longest_edge"}:
            raise UnsupportedConfigError(f"{source}: {key} = {value!r} is not supported; give longest_edge")
        edges[key] = int(value["longest_edge"])
    return Tiled(
        longest_edge_px=edges["size"], tile_px=edges["max_image_size"], splits=bool(full["do_image_splitting"])
    )


def _resample(value: Any, source: str) -> Resample:
    names = get_args(Resample)  # in the order of Pillow's numbers
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise UnsupportedConfigError(f"{source}: resample = {value!r}; known are 0 to {len(names) - 1} ({names})")
    found: Resample = names[value]
    return found


def _per_channel(value: Any, key: str, source: str) -> tuple[float, float, float]:
    if isinstance(value, (list, tuple)) and len(value) == 3:
        return float(value[0]), float(value[1]), float(value[2])
    raise UnsupportedConfigError(f"{source}: {key} = {value!r}; three numbers are needed, for R, G and B")
