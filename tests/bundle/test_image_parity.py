"""Preprocessing equals transformers' Pillow processors: same shapes, same tiles, same floats.

The tolerance is zero: resampling happens in the same Pillow on the same bytes, and the affine is rounded alike. (The
contract allows 1/255 per channel before normalisation.)
"""

from __future__ import annotations

import functools
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from bundle.decode import decode_image
from bundle.image import ImageSpec, TileLayout
from export.image_processor import read_image_spec

CUT = {"size": {"height": 32, "width": 32}, "crop_to_patches": True}
SMALL = {"size": {"longest_edge": 256}, "max_image_size": {"longest_edge": 64}}
PANS = {
    "size": {"height": 48, "width": 40},
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 30,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}
SQUARE = {"height": 64, "width": 64}
FROM_MINUS_1 = {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False, "include_top": False}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "smolvlm": ("SmolVLM", {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}),
    "tiled": ("Idefics3", SMALL),
    "tiled, uneven": ("Idefics3", {"size": {"longest_edge": 200}, "max_image_size": {"longest_edge": 48}}),
    "tiled, edge under a tile": ("Idefics3", {"size": {"longest_edge": 40}, "max_image_size": {"longest_edge": 64}}),
    "not split": ("Idefics3", {**SMALL, "do_image_splitting": False}),
    "llava": (
        "Llava",
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_center_crop": True},
    ),
    "llava, padded": (
        "Llava",
        {"size": {"shortest_edge": 90}, "crop_size": {"height": 90, "width": 90}, "do_pad": True},
    ),
    "clip": ("CLIP", {}),
    "clip, crop over size": ("CLIP", {"size": {"shortest_edge": 50}, "crop_size": {"height": 65, "width": 91}}),
    "clip, square": (
        "CLIP",
        {"size": {"height": 64, "width": 96}, "crop_size": {"height": 64, "width": 96}, "resample": 2},
    ),
    "chinese_clip": ("ChineseCLIP", {"size": {"height": 50, "width": 50}, "do_center_crop": False}),
    "efficientnet": (
        "EfficientNet",
        {
            "size": SQUARE,
            "crop_size": {"height": 51, "width": 38},
            "do_center_crop": True,
            "resample": 2,
            **FROM_MINUS_1,
        },
    ),
    "deit": ("DeiT", {"size": {"height": 70, "width": 60}, "crop_size": {"height": 50, "width": 41}}),
    "donut": ("Donut", {"size": {"height": 96, "width": 71}}),
    "donut, turned": ("Donut", {"size": {"height": 64, "width": 96}, "do_align_long_axis": True, "resample": 3}),
    "flava": ("Flava", {"size": SQUARE, "crop_size": SQUARE}),
    "vit": ("ViT", {"size": SQUARE}),
    "siglip": ("Siglip", {"size": {"height": 384, "width": 384}}),
    "siglip, oblong": ("Siglip", {"size": {"height": 90, "width": 51}, "resample": 4}),
    "nearest grid": ("GotOcr2", {"size": {"height": 48, "width": 40}, "crop_to_patches": True, "max_patches": 7}),
    "nearest grid, three tiles at least": ("GotOcr2", {**CUT, "min_patches": 3, "max_patches": 9}),
    "pan and scan": ("Gemma3", PANS),
    "marked grid": ("GraniteDocling", {"size": {"height": 40, "width": 40}, "max_patches": 22}),
    "covering grid": ("Ovis2", {"size": {"height": 40, "width": 40}, "crop_to_patches": True, "max_patches": 9}),
}
"""The class in transformers, and its settings."""
TILED = {"smolvlm", "tiled", "tiled, uneven", "tiled, edge under a tile", "not split"}
PAGES = {"donut", "donut, turned"}
"""Whose reference takes no sliver: a side would be 0 pixels long."""
QUICK = sorted(set(PROCESSORS) - {"smolvlm"} - PAGES)


@functools.cache
def _processor(name: str) -> Any:
    import transformers

    kind, settings = PROCESSORS[name]
    return getattr(transformers, f"{kind}ImageProcessorPil")(**settings)


def _spec(name: str) -> ImageSpec:
    return read_image_spec(_processor(name).to_dict(), name)


@pytest.mark.parametrize("kind", ["Bit", "ChineseCLIP", "CLIP", "Flava", "Siglip", "Siglip2", "ViT"])
def test_settings_that_are_left_out_have_transformers_defaults(kind: str) -> None:
    import transformers

    stated = getattr(transformers, f"{kind}ImageProcessorPil")().to_dict()
    named = {"image_processor_type": f"{kind}ImageProcessor"}
    assert read_image_spec(named, kind) == read_image_spec(stated, kind)


def _reference(name: str, image: Image.Image) -> tuple[np.ndarray, TileLayout]:
    if name.startswith("nearest grid"):
        return _processor(name)(images=[image], return_tensors="np")["pixel_values"], _nearest_grid(name, image)
    if name == "pan and scan":
        return _pan_and_scan(name, image)
    if name == "marked grid":
        found = _processor(name)(images=[[image]], return_tensors="np")
        rows, cols = found["rows"][0][0], found["cols"][0][0]
        return found["pixel_values"][0], TileLayout(rows, cols) if rows * cols > 1 else TileLayout()
    if name.startswith("covering grid"):
        found = _processor(name)(images=[image], return_tensors="np")
        rows, cols = found["grids"][0]
        return found["pixel_values"], TileLayout(rows, cols) if rows * cols > 1 else TileLayout()
    if name not in TILED:
        return _processor(name)(images=[image], return_tensors="np")["pixel_values"], TileLayout()
    found = _processor(name)(images=[[image]], return_tensors="np", return_row_col_info=True)
    return found["pixel_values"][0], TileLayout(found["rows"][0][0], found["cols"][0][0])


def _nearest_grid(name: str, image: Image.Image) -> TileLayout:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    processor = _processor(name)
    size = (processor.size["height"], processor.size["width"])
    cols, rows = get_optimal_tiled_canvas(image.size[::-1], size, processor.min_patches, processor.max_patches)
    return TileLayout(rows, cols) if rows * cols > 1 else TileLayout()


def _pan_and_scan(name: str, image: Image.Image) -> tuple[np.ndarray, TileLayout]:
    """The whole image comes first there, and last here."""
    found = _processor(name)(images=[image], return_tensors="np")
    num_crops = int(np.ravel(found["num_crops"])[0])
    pixels, (width, height) = np.roll(found["pixel_values"], -1, axis=0), image.size
    rows, cols = (1, num_crops) if width >= height else (num_crops, 1)
    return pixels, TileLayout(rows, cols, image_px=(height, width)) if num_crops else TileLayout()


def _expect_equal(name: str, image: Image.Image) -> None:
    expected, layout = _reference(name, image)
    found = _spec(name).preprocess([image])
    assert found.layouts == (layout,)
    assert found.pixel_values.dtype == np.float32
    np.testing.assert_array_equal(found.pixel_values, expected)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("photograph", ["china", "flower", "astronaut", "coffee", "chelsea", "camera", "text"])
def test_pixels_equal_the_reference_on_photographs(
    name: str, photograph: str, photographs: dict[str, Image.Image]
) -> None:
    image = photographs[photograph]
    _expect_equal(name, image.crop((3, 5, image.width - 8, image.height - 2)))


@pytest.mark.parametrize("photograph", ["china", "text"])
def test_pixels_equal_the_reference_at_smolvlm_s_own_sizes(
    photograph: str, photographs: dict[str, Image.Image]
) -> None:
    _expect_equal("smolvlm", photographs[photograph])


@pytest.mark.parametrize("name", QUICK)
@settings(max_examples=12, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_pixels_equal_the_reference_at_any_size(
    name: str, photographs: dict[str, Image.Image], width: int, height: int
) -> None:
    _expect_equal(name, photographs["coffee"].resize((width, height)))


@pytest.mark.parametrize("name", sorted(PAGES))
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (40, 30), (30, 41), (257, 255), (31, 290), (300, 7), (71, 96)])
def test_pages_equal_the_reference(name: str, photographs: dict[str, Image.Image], size: tuple[int, int]) -> None:
    _expect_equal(name, photographs["coffee"].resize(size))


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 150), (150, 1), (64, 64), (256, 256), (257, 255)])
def test_pixels_equal_the_reference_at_edge_sizes(
    name: str, photographs: dict[str, Image.Image], size: tuple[int, int]
) -> None:
    _expect_equal(name, photographs["astronaut"].resize(size))


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


_TURNED = ("PNG", "WEBP", "TIFF", "MPO")
_SRGB = ImageCms.createProfile("sRGB")
_XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def _xmp_text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", _XMP.decode(), zip=True)
    return info


def _raw_profile(exif: Image.Exif) -> PngImagePlugin.PngInfo:
    """ImageMagick's way to put EXIF into a PNG."""
    info, data = PngImagePlugin.PngInfo(), exif.tobytes()
    info.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=True)
    return info


def _variants(image: Image.Image) -> dict[str, bytes]:
    palette = image.quantize(31)
    exif = {turn: Image.Exif() for turn in range(1, 9)}
    for turn, tags in exif.items():
        tags[0x0112] = turn
    return {
        "jpeg": _encoded(image, "JPEG", quality=90),
        "progressive jpeg": _encoded(image, "JPEG", progressive=True),
        "grayscale": _encoded(image.convert("L"), "PNG"),
        "grayscale jpeg": _encoded(image.convert("L"), "JPEG"),
        "one bit": _encoded(image.convert("1"), "PNG"),
        "palette": _encoded(palette, "PNG"),
        "32 bit tiff": _encoded(image.convert("I"), "TIFF"),
        "float tiff": _encoded(image.convert("F"), "TIFF"),
        "cmyk": _encoded(image.convert("CMYK"), "JPEG"),
        "ycbcr tiff": _encoded(image.convert("YCbCr"), "TIFF"),
        "gif": _encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
        "bmp": _encoded(image, "BMP"),
        **{f"exif {turn}": _encoded(image, "JPEG", exif=tags) for turn, tags in exif.items()},
        **{f"exif {turn} {form}": _encoded(image, form, exif=exif[turn]) for turn in (5, 6) for form in _TURNED},
        "xmp jpeg": _encoded(image, "JPEG", xmp=_XMP),
        "xmp webp": _encoded(image, "WEBP", xmp=_XMP),
        "raw profile png": _encoded(image, "PNG", pnginfo=_raw_profile(exif[8])),
        "xmp png": _encoded(image, "PNG", pnginfo=_xmp_text()),
        "colour profile": _encoded(image, "PNG", icc_profile=ImageCms.ImageCmsProfile(_SRGB).tobytes()),
        "interlaced frames": _encoded(palette, "WEBP", save_all=True, append_images=[palette.rotate(90)]),
        "several pictures": _encoded(image, "MPO", save_all=True, append_images=[image.rotate(90)]),
        "apng": _encoded(image, "PNG", save_all=True, append_images=[image.rotate(90)]),
    }


VARIANTS = sorted(_variants(Image.new("RGB", (32, 20))))


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_equals_the_reference_for_every_kind_of_file(
    variant: str, photographs: dict[str, Image.Image]
) -> None:
    from transformers.image_utils import load_image

    image = photographs["chelsea"].resize((91, 60))
    data = _variants(image)[variant]
    expected = load_image(Image.open(BytesIO(data)))
    found = decode_image(data)
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    _expect_equal("tiled", found)


def test_variants_really_differ() -> None:
    """Guards the test above: rotation and modes must change what is decoded."""
    image = Image.linear_gradient("L").resize((91, 60)).convert("RGB")
    decoded = {name: decode_image(data) for name, data in _variants(image).items()}
    assert decoded["exif 6"].size == (60, 91)
    assert not np.array_equal(np.asarray(decoded["exif 3"]), np.asarray(decoded["exif 1"]))


def test_several_images_keep_their_order_and_layouts(photographs: dict[str, Image.Image]) -> None:
    spec = _spec("tiled")
    images = [photographs["china"].resize((200, 60)), photographs["text"].resize((50, 180))]
    both = spec.preprocess(images)
    alone = [spec.preprocess([image]) for image in images]
    assert both.layouts == (alone[0].layouts[0], alone[1].layouts[0])
    assert both.layouts == (TileLayout(2, 4), TileLayout(4, 2))
    np.testing.assert_array_equal(both.pixel_values, np.concatenate([one.pixel_values for one in alone]))
