"""Makes the checkpoints of this folder: tiny models of open_clip with random weights, and what open_clip makes of them.

open_clip and timm want torchvision, which nothing here uses: a stand-in of empty classes takes its place where there is
none. So this runs in an environment of its own, for all folders or those that are named:

    python -m venv /tmp/open_clip
    /tmp/open_clip/bin/pip install torch==2.13.0 transformers==5.14.1 -e '.[export]' ftfy regex
    /tmp/open_clip/bin/pip install --no-deps open_clip_torch==3.3.0 timm==1.0.31
    /tmp/open_clip/bin/python tests/data/open_clip/make.py [NAME ...]

Pixels are made here by Pillow as torchvision's Resize, CenterCrop and Normalize make them. Weights are kept in float16.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import AutoTokenizer

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2])]


class _StandIn(ModuleType):
    """A module of torchvision's that has a class of any name."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        kinds = {kind: kind for kind in ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")}
        return self.__dict__.setdefault(name, type(name, (), kinds))


def _stand_in_for_torchvision() -> None:
    parts = "datasets models models.feature_extraction ops ops.misc transforms transforms.functional"
    for name in ("torchvision", *(f"torchvision.{part}" for part in parts.split())):
        sys.modules[name] = module = _StandIn(name)
        module.__path__, module.__spec__ = [], ModuleSpec(name, None)
        around, _, own = name.rpartition(".")
        if around:
            setattr(sys.modules[around], own, module)


if importlib.util.find_spec("torchvision") is None:
    _stand_in_for_torchvision()
import checkpoints  # noqa: E402
import encoder_files as files  # noqa: E402
import open_clip.hf_model  # noqa: E402
import open_clip.timm_model  # noqa: E402
import timm  # noqa: E402
from open_clip.coca_model import CoCa  # noqa: E402
from open_clip.model import CLIP, CustomTextCLIP  # noqa: E402
from open_clip.tokenizer import HFTokenizer  # noqa: E402
from timm.models.eva import Eva  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402
from timm.models.vision_transformer_hybrid import ConvStem, _create_vision_transformer_hybrid  # noqa: E402
from timm.models.vitamin import GeGluMlp, VitCfg, VitConvCfg, _create_vitamin  # noqa: E402

from export.towers.eva02 import EVA02S  # noqa: E402
from export.towers.fastvit_config import FASTVITS  # noqa: E402
from export.towers.timm_vit import TIMM_VITS  # noqa: E402
from export.towers.vitamin import VITAMINS  # noqa: E402

BLOCKS = {"width": 24, "layers": 2}
TEXT = {"width": 20, "layers": 2, "heads": 2, "context_length": 48}
VIT = {**BLOCKS, "image_size": 30, "patch_size": 10, "head_width": 8}
BERT = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
SIGLIP, PLAIN = "vit_large_patch16_siglip_512", "vit_base_patch16_224"
EVA02, EVA02_LARGE = "eva02_base_patch16_clip_224", "eva02_large_patch14_clip_336"
VITAMIN, VITAMIN_XL = "vitamin_small_224", "vitamin_xlarge_256"
MCI_SMALL, MCI_LARGE, MCI_VIT, CLIP_LARGE = (
    "fastvit_mci0",
    "fastvit_mci3",
    "vit_base_mci_224",
    "vit_large_patch14_clip_224",
)
"""Names of towers in timm, which stand for tiny ones here."""
MCIS = {
    MCI_SMALL: {"layers": (1, 2, 1, 1), "embed_dims": (8, 16, 16, 32), "mlp_ratios": (2, 3, 1.5, 2)},
    MCI_LARGE: {"layers": (1, 1, 1, 2, 1), "embed_dims": (8, 8, 16, 32, 64), "mlp_ratios": (2, 3, 2, 1.5, 1)},
}
TRUNK = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
TRUNKS = {SIGLIP: {"class_token": False, "global_pool": "map", "mlp_ratio": 3.0, "act_layer": "gelu_tanh"}, PLAIN: {}}
ITSELF = {"hf_tokenizer_name": "itself"}
SWITCHES = {"ls_init_value": 0.1, "norm_kwargs": {"eps": 1e-3}}
MODELS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 12, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": {**TEXT, "vocab_size": 514}},
    "vit_of_all_switches": {
        "embed_dim": 20,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": VIT
        | SWITCHES
        | {"head_width": 12, "mlp_ratio": 2.3, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": TEXT
        | SWITCHES
        | ITSELF
        | {"context_length": 20, "vocab_size": len(files.BERT_WORDS), "tokenizer_kwargs": {"clean": "canonicalize"}}
        | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "act_kwargs": {"approximate": "tanh"}},
    },
    "coca": {
        "embed_dim": 12,
        "custom_text": True,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 3, "attn_pooler_queries": 5},
        "text_cfg": {**TEXT, "vocab_size": 514, "embed_cls": True},
        "multimodal_cfg": {"context_length": 48, "vocab_size": 514, "width": 12, "heads": 2, "layers": 1},
    },
    "coca_as_wide_as_its_tower": {
        "embed_dim": 24,
        "custom_text": True,
        "quick_gelu": True,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 3},
        "text_cfg": {**TEXT, "vocab_size": 514, "embed_cls": True},
        "multimodal_cfg": {"context_length": 48, "vocab_size": 514, "width": 24, "heads": 2, "layers": 1},
    },
    "bert": {
        "embed_dim": 12,
        "vision_cfg": VIT,
        "text_cfg": {"hf_model_name": "bert-base-uncased", **ITSELF, "context_length": 48},
    },
    "roberta": {
        "embed_dim": 12,
        "vision_cfg": VIT,
        "text_cfg": ITSELF
        | {"hf_model_name": "xlm-roberta-base", "context_length": 48, "tokenizer_kwargs": {"clean": "lower"}}
        | {"hf_proj_type": "linear", "hf_pooler_type": "cls_pooler"},
    },
    "worldwide": {
        "embed_dim": 12,
        "vision_cfg": VIT,
        "text_cfg": {**TEXT, **ITSELF, "vocab_size": len(files.UNIGRAM_PIECES) + 1, "pool_type": "eos", "eos_id": 2},
    },
    "first_token": {
        "embed_dim": 20,
        "vision_cfg": {**VIT, "pool_type": "avg"},
        "text_cfg": TEXT
        | ITSELF
        | {"context_length": 20, "vocab_size": len(files.BERT_WORDS)}
        | {"no_causal_mask": True, "pool_type": "first", "proj_type": "none"},
    },
    "siglip": {
        "embed_dim": 24,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {"image_size": 32, "timm_model_name": SIGLIP, "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": TEXT
        | ITSELF
        | {"context_length": 20, "vocab_size": len(files.BERT_WORDS), "tokenizer_kwargs": {"clean": "canonicalize"}}
        | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}},
    },
    "vitamin": {
        "embed_dim": 12,
        "custom_text": True,
        "vision_cfg": {"image_size": 64, "timm_model_name": VITAMIN, "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": {**TEXT, "vocab_size": 514},
    },
    "vitamin_without_positions": {
        "embed_dim": 12,
        "custom_text": True,
        "vision_cfg": {"image_size": 48, "timm_model_name": VITAMIN_XL, "timm_pool": "", "timm_proj_bias": True},
        "text_cfg": {**TEXT, "vocab_size": 514},
    },
    "eva02": {
        "embed_dim": 12,
        "custom_text": True,
        "vision_cfg": {"image_size": 30, "timm_model_name": EVA02, "timm_pool": "token", "timm_proj": None},
        "text_cfg": {**TEXT, "vocab_size": 514},
    },
    "eva02_of_more_patches": {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {"image_size": 50, "timm_model_name": EVA02_LARGE, "timm_pool": "token", "timm_proj": None},
        "text_cfg": {**TEXT, "vocab_size": 514},
    },
    "mobileclip": {
        "embed_dim": 20,
        "custom_text": True,
        "vision_cfg": {"image_size": 96, "timm_model_name": MCI_SMALL, "timm_pool": "avg", "timm_proj": None},
        "text_cfg": {**TEXT, "vocab_size": 514, "no_causal_mask": True},
    },
    "mobileclip2_of_five_stages": {
        "embed_dim": 12,
        "custom_text": True,
        "vision_cfg": {"image_size": 128, "timm_model_name": MCI_LARGE, "timm_pool": "avg", "timm_proj": None},
        "text_cfg": {**TEXT, "vocab_size": 514, "no_causal_mask": True},
    },
    "mobileclip_vit": {
        "embed_dim": 20,
        "custom_text": True,
        "vision_cfg": {"image_size": 48, "timm_model_name": MCI_VIT, "timm_pool": "token", "timm_proj": None},
        "text_cfg": {**TEXT, "vocab_size": 514},
    },
    "mobileclip2_vit": {
        "embed_dim": 12,
        "custom_text": True,
        "vision_cfg": {"image_size": 30, "timm_model_name": CLIP_LARGE, "timm_pool": "token", "timm_proj": None},
        "text_cfg": {**TEXT, "vocab_size": 514, "no_causal_mask": True},
    },
    "biomed": {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "timm_model_name": PLAIN, "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": ITSELF
        | {"hf_model_name": "bert-base-uncased", "context_length": 40}
        | {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"},
    },
}
PREPROCESSING = {"vit_of_all_switches": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}}
PREPROCESSING["worldwide"] = {"interpolation": "bilinear"}
PREPROCESSING["mobileclip"] = {"interpolation": "bilinear"}
PREPROCESSING["mobileclip_vit"] = {"mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear"}


TIMM = timm.create_model
STEM = r"patch_embed\.backbone\.\d\.conv\.weight"


def _hf_config(name: str) -> Any:
    from transformers import BertConfig, XLMRobertaConfig

    if name.startswith("bert"):
        return BertConfig(**BERT, vocab_size=len(files.BERT_WORDS), max_position_embeddings=60)
    return XLMRobertaConfig(
        **BERT,
        vocab_size=len(files.UNIGRAM_PIECES) + 1,
        max_position_embeddings=60,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )


def _vitamin(name: str) -> Any:
    """Return a tiny one; `_create_vitamin` is what timm's functions of these names call."""
    is_small = name == VITAMIN
    stages = VitCfg(embed_dim=(6, 12, 24), depths=(2, 1, 1), stem_width=6, conv_cfg=VitConvCfg(), head_type="1d")
    tower = {"embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_layer": GeGluMlp, "mlp_ratio": 2.0}
    pooled = {"class_token": False, "global_pool": "avg", "pos_embed": "learn" if is_small else "none"}
    side = 64 if is_small else 48
    return _create_vitamin(name, embed_cfg=stages, img_size=side, **tower, **pooled)


def _eva02(name: str, options: dict[str, Any]) -> Any:
    """Return a tiny one, with the switches of timm's functions of these names."""
    side, depth = (30, 2) if name == EVA02 else (50, 1)
    own = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True, "use_rot_pos_emb": True}
    sizes = {"img_size": side, "patch_size": 10, "embed_dim": 24, "depth": depth, "num_heads": 3}
    return Eva(**sizes, **own, mlp_ratio=4 * 2 / 3, ref_feat_shape=(16, 16), **options)


def _hybrid(options: dict[str, Any]) -> Any:
    """Return a tiny one, with the switches of timm's function of that name."""
    stem = ConvStem(channels=(6, 6, 24), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0, act_layer=nn.GELU)
    sizes = {"img_size": 48, "embed_dim": 24, "depth": 2, "num_heads": 3, "no_embed_class": True}
    return _create_vision_transformer_hybrid(MCI_VIT, backbone=stem, embed_args={"proj": False}, **sizes, **options)


def _timm(name: str, pretrained: bool = False, **options: Any) -> Any:
    options = {key: value for key, value in options.items() if not key.startswith("drop")}
    if name in MCIS:
        return TIMM(name, **MCIS[name], **options)
    if name == MCI_VIT:
        return _hybrid(options)
    if name == CLIP_LARGE:
        return TIMM(name, img_size=30, patch_size=10, embed_dim=24, depth=2, num_heads=3, **options)
    if name in (VITAMIN, VITAMIN_XL):
        return _vitamin(name)
    if name in (EVA02, EVA02_LARGE):
        return _eva02(name, options)
    trunk = VisionTransformer(**{**TRUNK, **TRUNKS[name], **options})
    trunk.default_cfg = {}
    return trunk


def _model(config: dict[str, Any]) -> Any:
    given = json.loads(json.dumps(config))
    is_custom = given.pop("custom_text", False) or "hf_model_name" in given["text_cfg"]
    given["text_cfg"]["hf_model_pretrained"] = False
    if "multimodal_cfg" in given:
        for part in ("vision_cfg", "text_cfg"):
            given[part]["output_tokens"] = True
        return CoCa(**given)
    return (CustomTextCLIP if is_custom else CLIP)(**given)


def _tokenizer(folder: Path, config: dict[str, Any]) -> None:
    text = config["text_cfg"]
    if "hf_tokenizer_name" not in text:
        checkpoints.save_clip_tokenizer(folder, text["context_length"])
    elif text.get("vocab_size") == len(files.BERT_WORDS) or text.get("hf_model_name", "").startswith("bert"):
        files.save_bert_tokenizer(folder, text["context_length"])
    else:
        files.save_unigram_tokenizer(folder, text["context_length"])


def _ids(folder: Path, config: dict[str, Any]) -> torch.Tensor:
    """Return ids as open_clip's tokenizers make them; its own pads with zeros."""
    text = config["text_cfg"]
    length = text["context_length"]
    if "hf_tokenizer_name" in text:
        return HFTokenizer(str(folder), length, **text.get("tokenizer_kwargs", {}))(files.TEXTS)
    rows = AutoTokenizer.from_pretrained(folder)(files.TEXTS).input_ids
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def _pixels(image: Image.Image, side: int, settings: dict[str, Any]) -> np.ndarray:
    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[settings["interpolation"]]
    if settings["resize_mode"] == "squash":
        image = image.resize((side, side), resample)
    else:
        short = min(image.size)
        image = image.resize(
            tuple(side if edge == short else int(side * edge / short) for edge in image.size), resample
        )
        left, top = (round((edge - side) / 2) for edge in image.size)
        image = image.crop((left, top, left + side, top + side))
    values = np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(255)
    mean, std = (np.array(settings[key], np.float32)[:, None, None] for key in ("mean", "std"))
    return (values - mean) / std


def _make(name: str, config: dict[str, Any]) -> None:
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    plain = {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}
    settings = plain | {"mean": files.CLIP_COLOURS["image_mean"], "std": files.CLIP_COLOURS["image_std"]}
    settings |= PREPROCESSING.get(name, {})
    files.write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": settings})
    _tokenizer(folder, config)
    model = _model(config).eval()
    files.draw(model, torch.float16)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(
        {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
        folder / "open_clip_model.safetensors",
    )
    side = config["vision_cfg"]["image_size"]
    pixels = np.stack([_pixels(each.convert("RGB"), side, settings) for each in files.pictures()])
    ids = _ids(folder, config)
    with torch.no_grad():
        images = model.encode_image(torch.from_numpy(pixels), normalize=True)
        texts = model.encode_text(ids, normalize=True)
        logits = model.logit_scale.exp() * images @ texts.T
        logits = logits if model.logit_bias is None else logits + model.logit_bias
    arrays = {"pixel_values": pixels, "input_ids": ids.numpy(), "images": images.numpy(), "texts": texts.numpy()}
    np.savez_compressed(folder / "expected.npz", logits=logits.numpy(), **arrays)


def _stages(name: str) -> dict[str, Any]:
    """Return what timm builds by the name of a FastViT."""
    with torch.device("meta"):
        model = timm.create_model(name)
    blocks = [stage.blocks[0] for stage in model.stages]
    return {
        "layers": [len(stage.blocks) for stage in model.stages],
        "widths": [block.mlp.fc2.out_channels for block in blocks],
        "inner": [block.mlp.fc1.out_channels for block in blocks],
        "attends": [hasattr(block, "norm") for block in blocks],
        "squeezes": [
            hasattr(stage, "downsample") and "downsample.proj.0.se.fc1.weight" in stage.state_dict()
            for stage in model.stages
        ],
        "norms_by_batch": isinstance(blocks[-1].norm, nn.BatchNorm2d),
        "stem_has_scales": model.stem[0].conv_scale is not None,
        "last": model.num_features,
    }


def _sizes(name: str) -> dict[str, Any]:
    """Return what timm builds by a name that export knows."""
    # a stem of convolutions measures itself by running
    with torch.device("cpu" if name == MCI_VIT else "meta"):
        model = timm.create_model(name)
    shapes, block = {key: list(value.shape) for key, value in model.state_dict().items()}, model.blocks[0]
    inner = next(key for key in (f"blocks.0.mlp.{each}.weight" for each in ("w0", "fc1_g", "fc1")) if key in shapes)
    return {
        "width": shapes[inner][1],
        "inner": shapes[inner][0],
        "layers": len(model.blocks),
        "heads": block.attn.num_heads,
        "eps": block.norm1.eps,
        "activation": type(block.mlp.act).__name__,
        "side": model.patch_embed.img_size[0],
        "positions": shapes.get("pos_embed", [0, 0])[1],
        "has_class_token": "cls_token" in shapes,
        "stem": shapes.get("patch_embed.backbone.stem.conv1.weight", [0])[0],
        "convolutions": [value[2] for key, value in shapes.items() if re.fullmatch(STEM, key)],
        "norms_first": "norm_pre.weight" in shapes,
    }


def main() -> None:
    """Write the folders that are named, or all, and the sizes of timm's towers."""
    sizes = {name: _sizes(name) for name in {**EVA02S, **TIMM_VITS, **VITAMINS}}
    sizes |= {name: _stages(name) for name in FASTVITS}
    files.write_json(HERE / "timm.json", dict(sorted(sizes.items())))
    open_clip.hf_model.AutoConfig = SimpleNamespace(from_pretrained=_hf_config)
    open_clip.timm_model.timm.create_model = _timm
    for name in sys.argv[1:] or MODELS:
        _make(name, MODELS[name])


if __name__ == "__main__":
    main()
