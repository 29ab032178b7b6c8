"""Tiny Molmo 2 checkpoints: crops that overlap, pooled windows, tokens of images that all see one another.

The first is written by the published names, with fused projections and the table of tokens in two; the second by
transformers' own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import PAD, RESCALING, save_byte_tokenizer, save_model, save_processor, write_json
from safetensors.numpy import load_file, save_file
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes

BOS, START = "<|im_end|>", "<|im_start|>"
SPOKEN = [PAD, BOS, START]
IMAGES = [
    "<im_start>",
    "<im_end>",
    "<im_patch>",
    "<im_col>",
    "<low_res_im_start>",
    "<|image|>",
    "<im_low>",
    "<frame_start>",
    "<frame_end>",
    "<|video|>",
]
ROOM = 2
"""Rows of the table of tokens that no token has, of those that are said."""
FIRST = 256 + len(SPOKEN) + ROOM
CONTROL = [*SPOKEN, *(f"<room_{number}>" for number in range(ROOM)), *IMAGES]
PATCH = FIRST + IMAGES.index("<im_patch>")
CONTROL_IDS = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 257}
TEMPLATE = (
    "{% set shown = namespace(number=0) %}"
    "{% for message in messages %}{% for part in message.content if part.type == 'image' %}"
    "{% set shown.number = shown.number + 1 %}{% endfor %}{% endfor %}"
    "{% for number in range(shown.number) %}"
    "{{ '' if shown.number == 1 else 'Image ' ~ (number + 1) }}<|image|>{% endfor %}"
    "{% for message in messages %}{% for part in message.content if part.type == 'video' %}<|video|>"
    "{% endfor %}{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }} {% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "published-names-uneven-margins-odd-windows": _published(),
        "own-names-biases-three-layers-no-line-ends": _own(),
    }


def _published() -> Config:
    words = {**_text(), "qkv_bias": False, "layer_norm_eps": 1e-5, "rope_theta": 700.0, "rope_scaling": None}
    tower = {**_TOWER, "num_hidden_layers": 5, "image_default_input_size": [70, 70], "image_patch_size": 14}
    return _config(
        words,
        vit_config={**tower, "image_num_pos": 25},
        adapter_config={**_ADAPTER, "vit_layers": [-2, 1]},
        images={"max_crops": 5, "overlap_margins": [1, 2]},
    )


def _own() -> Config:
    words = {
        **_text(),
        "attention_bias": True,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 40,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 400.0, "factor": 2.0},
    }
    tower = {**_TOWER, "num_hidden_layers": 4, "image_size": [72, 72], "patch_size": 12, "num_position_embeddings": 36}
    return _config(
        words,
        vision_config=tower,
        adapter_config={**_ADAPTER, "vision_feature_layer": [0, 2, -3], "text_hidden_size": 40, "head_dim": 8},
        images={"max_crops": 4, "overlap_margins": [1, 0], "pooling_size": [2, 3]},
    )


_TOWER: Config = {
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 12,
    "hidden_act": "gelu_pytorch_tanh",
}
_ADAPTER: Config = {
    "hidden_size": 36,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "intermediate_size": 52,
    "text_hidden_size": 48,
}


def _text() -> Config:
    return {
        "model_type": "molmo2_text",
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": FIRST,
        "additional_vocab_size": len(IMAGES) + 3,
        "max_position_embeddings": 512,
    }


def _config(text: Config, images: Config, **parts: Any) -> Config:
    return {
        "architectures": ["Molmo2ForConditionalGeneration"],
        "model_type": "molmo2",
        "image_patch_id": PATCH,
        "tie_word_embeddings": False,
        "text_config": text,
        **parts,
        "images": images,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    stated = {key: each for key, each in config.items() if key != "images"}
    is_published = "vit_config" in config
    save_model(folder, stated, _published_shapes(config) if is_published else _own_shapes(config))
    _quieten(folder / "model.safetensors")
    write_json(folder / "generation_config.json", CONTROL_IDS)
    side = 70 if is_published else 72
    images = {
        "image_processor_type": "Molmo2ImageProcessor",
        "size": {"height": side, "width": side},
        "patch_size": 14 if is_published else 12,
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_resize": True,
        **RESCALING,
        **config["images"],
    }
    columns = {"image_use_col_tokens": is_published, "use_single_crop_col_tokens": False}
    save_processor(folder, "Molmo2Processor", images, use_single_crop_start_token=is_published, **columns)
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, eos_token=BOS, **({"bos_token": BOS} if is_published else {}))
    (folder / "chat_template.jinja").write_text(TEMPLATE if is_published else BOS + TEMPLATE)


def _quieten(path: Path) -> None:
    """Scale features down to the size of a token: nothing norms them, nor what they are made of."""
    weights = load_file(path)
    for name in weights:
        if name.endswith(("image_projector.w2.weight", "image_projector.down_proj.weight")):
            weights[name] *= 1e-4
    save_file(weights, path, {"format": "pt"})


def _on_torch(kind: type) -> Any:
    """Return a processor of transformers' in which torch does what it takes of torchvision."""
    import torch

    class OnTorch(kind):  # type: ignore[misc]
        def resize(self, image: Any, size: Any, resample: Any = None, antialias: bool = True) -> Any:
            """Scale as torchvision does, on two threads: on one, sums are rounded in another order."""
            assert not antialias
            threads, shape = torch.get_num_threads(), (size.height, size.width)
            torch.set_num_threads(2)
            try:
                return torch.nn.functional.interpolate(image, size=shape, mode="bilinear", align_corners=False)
            finally:
                torch.set_num_threads(threads)

        def rescale_and_normalize(
            self, images: Any, rescales: bool, factor: float, normalises: bool, mean: Any, std: Any
        ) -> Any:
            mean, std = (torch.tensor(each)[:, None, None] for each in (mean, std))
            return (images * torch.tensor(factor, dtype=torch.float64)).float().sub(mean).div(std)

    return OnTorch


def processor(folder: Path) -> Any:
    """Return transformers' processor without the part for videos; what it takes of torchvision is done by torch."""
    from transformers import AutoTokenizer
    from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor
    from transformers.models.molmo2.processing_molmo2 import Molmo2Processor

    class StillProcessor(Molmo2Processor):  # type: ignore[misc]
        def check_argument_for_proper_class(self, name: str, given: Any) -> Any:
            """Let the part for videos be none."""
            return type(given) if given is None else super().check_argument_for_proper_class(name, given)

    settings = json.loads((folder / "processor_config.json").read_text())
    options = {key: each for key, each in settings.items() if key.startswith(("image_use", "use_"))}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    told = {key: each for key, each in settings["image_processor"].items() if key != "image_processor_type"}
    template = (folder / "chat_template.jinja").read_text()
    images = _on_torch(Molmo2ImageProcessor)(**told)
    return StillProcessor(images, tokenizer=tokenizer, chat_template=template, **options)


class Videos:
    """transformers' processor of videos, past what it takes of torchvision: frames that are chosen already, 4 a second.

    `_preprocess` is what it does with them.
    """

    max_fps = 2

    def __init__(self, folder: Path) -> None:
        from transformers.models.molmo2.video_processing_molmo2 import Molmo2VideoProcessor

        told = json.loads((folder / "processor_config.json").read_text())["image_processor"]
        self._told = {key: told[key] for key in ("do_rescale", "rescale_factor", "do_normalize", "patch_size")}
        self._side, self._mean = told["size"]["height"], told["image_mean"]
        self._frames = _on_torch(Molmo2VideoProcessor).__new__(_on_torch(Molmo2VideoProcessor))

    def __call__(self, videos: list[list[Any]], **_: Any) -> dict[str, Any]:
        """Return pixels, windows and grid of one video, and when its frames are."""
        import torch
        from transformers.image_utils import SizeDict
        from transformers.video_utils import VideoMetadata

        (frames,) = videos
        pixels = torch.stack([torch.from_numpy(np.array(each)).permute(2, 0, 1) for each in frames])
        size, colours = (
            SizeDict(height=self._side, width=self._side),
            {"image_mean": self._mean, "image_std": self._mean},
        )
        made = self._frames._preprocess([pixels], size, 2, **colours, pooling_size=[3, 3], **self._told)
        told = VideoMetadata(total_num_frames=len(frames), fps=4.0, frames_indices=list(range(len(frames))))
        return {**made, "video_metadata": [told]}


def _connector(config: Config, names: tuple[str, ...], before: str) -> Shapes:
    """Name the connector's weights; names are those of queries, keys, values, output, and of the three matrices."""
    told, layers = config["adapter_config"], config["adapter_config"].get("vit_layers")
    layers = layers or config["adapter_config"]["vision_feature_layer"]
    wide, inner = told["hidden_size"] * len(layers), told["num_attention_heads"] * told["head_dim"]
    shapes: Shapes = {}
    for name in names[:3]:
        shapes |= linear_shapes(f"{before}image_pooling_2d.{name}", inner, wide)
    shapes |= linear_shapes(f"{before}image_pooling_2d.{names[3]}", told["hidden_size"], inner)
    gate, down, up = names[4:]
    for name in (gate, up):
        columns = told["hidden_size"]
        shapes |= linear_shapes(f"{before}image_projector.{name}", told["intermediate_size"], columns, bias=False)
    last = told["text_hidden_size"], told["intermediate_size"]
    return shapes | linear_shapes(f"{before}image_projector.{down}", *last, bias=False)


def _tower(told: Config, num_layers: int, patches: int, patch_px: int, names: tuple[str, ...], before: str) -> Shapes:
    width, inner = told["hidden_size"], told["intermediate_size"]
    shapes: Shapes = {f"{before}positional_embedding": (patches, width)}
    shapes |= linear_shapes(f"{before}patch_embedding", width, 3 * patch_px**2)
    where, *attention, first, second, norm, other = names
    for layer in (f"{before}{where}{number}." for number in range(num_layers)):
        for name in attention:
            shapes |= linear_shapes(f"{layer}{name}", width, width)
        shapes |= linear_shapes(f"{layer}{first}", inner, width) | linear_shapes(f"{layer}{second}", width, inner)
        shapes |= norm_shapes(width, f"{layer}{norm}", f"{layer}{other}")
    return shapes


def _published_shapes(config: Config) -> Shapes:
    """Name every weight as the published files do; of five layers of the tower, the first four."""
    text, before = config["text_config"], "model.transformer."
    width, inner, head = text["hidden_size"], text["intermediate_size"], text["head_dim"]
    queries, keys = text["num_attention_heads"] * head, text["num_key_value_heads"] * head
    shapes: Shapes = {
        "lm_head.weight": (text["vocab_size"], width),
        f"{before}wte.embedding": (text["vocab_size"], width),
        f"{before}wte.new_embedding": (text["additional_vocab_size"], width),
        f"{before}ln_f.weight": (width,),
    }
    for layer in (f"{before}blocks.{number}." for number in range(text["num_hidden_layers"])):
        shapes |= {
            f"{layer}self_attn.att_proj.weight": (queries + 2 * keys, width),
            f"{layer}self_attn.attn_out.weight": (width, queries),
            f"{layer}mlp.ff_proj.weight": (2 * inner, width),
            f"{layer}mlp.ff_out.weight": (width, inner),
            **{f"{layer}{name}.weight": (width,) for name in ("attn_norm", "ff_norm")},
            **{f"{layer}self_attn.{name}.weight": (head,) for name in ("q_norm", "k_norm")},
        }
    attention = [f"attention.w{name}" for name in "qkvo"]
    names = ("transformer.resblocks.", *attention, "feed_forward.w1", "feed_forward.w2", "attention_norm", "ffn_norm")
    shapes |= _tower(config["vit_config"], 4, 25, 14, names, "model.vision_backbone.image_vit.")
    return shapes | _connector(config, ("wq", "wk", "wv", "wo", "w1", "w2", "w3"), "model.vision_backbone.")


def _own_shapes(config: Config) -> Shapes:
    """Name every weight as transformers does."""
    text, before = config["text_config"], "model.language_model."
    shapes = decoder_shapes({**text, "model_type": "qwen2", "attention_bias": False}, before)
    shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    table = f"{before}embed_tokens.weight"
    shapes[table] = (text["vocab_size"] + text["additional_vocab_size"], text["hidden_size"])
    for number in range(text["num_hidden_layers"]):
        shapes |= {f"{before}layers.{number}.self_attn.{name}_norm.weight": (text["head_dim"],) for name in "qk"}
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    names = ("layers.", *attention, "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2")
    shapes |= _tower(config["vision_config"], 4, 36, 12, names, "model.vision_tower.")
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj")
    return shapes | _connector(config, names, "model.multi_modal_projector.")
