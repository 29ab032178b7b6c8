"""FLAVA's towers: `flava`."""

from __future__ import annotations

from pathlib import Path

import encoder_files as files

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2}
IMAGE = {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 3}
OTHERS = {"multimodal_config": {**TEXT, "num_hidden_layers": 1}, "image_codebook_config": {"hidden_size": 4}}
REFUSED = [
    ({"text_config": {"hidden_act": "mish"}}, "'mish'"),
    ({"image_config": {"num_channels": 1}}, "num_channels is 1"),
]


def geometries() -> list[files.Config]:
    """Return two odd ones: the two encoders, and all that was pretrained with them, as published checkpoints are."""
    words = {"vocab_size": len(files.BERT_WORDS) + 3, "max_position_embeddings": 48}
    first = {"architectures": ["FlavaModel"], "projection_dim": 20, "text_config": TEXT | words}
    first["image_config"] = {**IMAGE, "image_size": 36, "patch_size": 12, "mask_token": False}
    second = {"architectures": ["FlavaForPreTraining"], "projection_dim": 44}
    second["text_config"] = {**TEXT, **words, "hidden_act": "relu", "layer_norm_eps": 1e-5, "qkv_bias": False}
    second["image_config"] = {**IMAGE, "image_size": 50, "patch_size": 8, "hidden_act": "gelu_new", "qkv_bias": False}
    return [{"model_type": "flava", **OTHERS, **each} for each in (first, second)]


def save_processor(folder: Path, config: files.Config) -> None:
    """Write images stretched to a square, and settings of the codebook, as published checkpoints have them."""
    side = files.square(config["image_config"]["image_size"])
    files.save_images(folder, "FlavaImageProcessor", size=side, crop_size=side, codebook_do_resize=True)
    files.save_bert_tokenizer(folder, 48, processor_class="FlavaProcessor")


def expected(model, inputs):
    """Return what the contrastive loss compares: the first vectors, of unit length."""
    model = getattr(model, "flava", model)
    images = model.get_image_features(inputs["pixel_values"]).pooler_output[:, 0]
    texts = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output[:, 0]
    images, texts = (each / each.norm(dim=-1, keepdim=True) for each in (images, texts))
    return images, texts, images @ texts.T * model.logit_scale.exp()
