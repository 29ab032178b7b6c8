"""A Hugging Face image processor's settings to `bundle.image.ImageSpec`, or a refusal that names the setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, Resample
from export.image_processors.image_processor import ImageProcessor
from export.image_processors.table import IMAGE_PROCESSORS

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
        "background_color",  # DeepSeek-VL: the mean, whatever it says
        "_valid_processor_keys",
    }
)
"""Settings of these classes that do not change `pixel_values`."""


def read_image_spec(settings: Mapping[str, Any], source: str, default_class: str | None = None) -> ImageSpec:
    """Return the preprocessing that the settings describe.

    Args:
        settings: `preprocessor_config.json`, or `image_processor` inside `processor_config.json`.
        source: Where they were read, for messages.
        default_class: The model's, which is taken where the settings name none.

    Raises:
        UnsupportedConfigError: An unknown class or setting, or a value that is not reproduced.
    """
    processor = _processor(settings, source, default_class)
    _check_known(settings, processor, source)
    full = {**processor.defaults, **{key: value for key, value in settings.items() if value is not None}}
    for key in ("do_resize", "do_rescale"):
        if not full[key]:
            raise UnsupportedConfigError(f"{source}: {key} is false; only true is supported")
    colours = processor.colours(full, source)
    try:
        return ImageSpec(
            geometry=processor.geometry(full, source),
            resample=_resample(full["resample"], source),
            rescale_factor=colours.rescale_factor,
            mean=colours.mean,
            std=colours.std,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UnsupportedConfigError(f"{source}: {first['msg']}, given {first['input']!r}") from error


def _processor(settings: Mapping[str, Any], source: str, default_class: str | None) -> ImageProcessor:
    stated = settings.get("image_processor_type") or settings.get("feature_extractor_type") or default_class
    name = str(stated)
    for ending in ("Fast", "Pil"):
        name = name.removesuffix(ending)
    if name not in IMAGE_PROCESSORS:
        raise UnsupportedConfigError(
            f"{source}: image_processor_type {stated!r} is not supported; known are "
            f"{', '.join(sorted(IMAGE_PROCESSORS))}. "
            "Where the file names none, add the one that the model was trained with."
        )
    return IMAGE_PROCESSORS[name]


def _check_known(settings: Mapping[str, Any], processor: ImageProcessor, source: str) -> None:
    known = {*processor.defaults, *processor.without_effect, *_WITHOUT_EFFECT}
    for key, value in settings.items():
        if key in known or value is None:
            continue
        # What another class reads, this one may carry as dead weight, which must at least be off
        if not value and any(key in other.defaults for other in IMAGE_PROCESSORS.values()):
            continue
        raise UnsupportedConfigError(f"{source}: {key} = {value!r} is not supported by this exporter")


def _resample(value: Any, source: str) -> Resample:
    names = get_args(Resample)  # in the order of Pillow's numbers
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise UnsupportedConfigError(f"{source}: resample = {value!r}; known are 0 to {len(names) - 1} ({names})")
    found: Resample = names[value]
    return found
