"""SiglipImageProcessor: every image stretched to one size."""

from __future__ import annotations

from export.image_processors.clip import CLIP, single_tile
from export.image_processors.image_processor import HALF, ImageProcessor, colours_where_asked

_SOUNDS = frozenset(
    {
        "audio_seq_length",
        "dither",
        "feature_size",
        "fft_length",
        "fft_overdrive",
        "frame_length",
        "frame_length_ms",
        "hop_length",
        "hop_length_ms",
        "input_scale_factor",
        "max_frequency",
        "mel_floor",
        "min_frequency",
        "padding_side",
        "padding_value",
        "per_bin_mean",
        "per_bin_stddev",
        "preemphasis",
        "preemphasis_htk_flavor",
        "return_attention_mask",
        "sampling_rate",
    }
)
"""Of Gemma 3n's sounds, whose settings stand in one file with those of its images."""

SIGLIP = ImageProcessor(
    {
        **CLIP.defaults,
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "image_mean": HALF,
        "image_std": HALF,
    },
    single_tile,
    without_effect=_SOUNDS,
    colours=colours_where_asked,
)
