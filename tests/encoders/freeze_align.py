"""freeze-align: transformers' DINOv2 and RoBERTa, and projections written from the paper's published code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import encoder_files as files
import torch
from torch import Tensor, nn

TEMPERATURE = 0.07
TEXT = {"intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2}
VISION = {"model_type": "dinov2", "hidden_size": 40, "num_attention_heads": 5, "num_hidden_layers": 2, "mlp_ratio": 2}
REFUSED = [
    ({"local_vision_projection": "identity"}, "'local_vision_projection': 'identity'.* linear, mlp, patch"),
    ({"vis_pooling": "sum"}, "'sum'.*mean and max"),
    ({"text_pooling": "cls"}, "text_pooling is 'cls'"),
    ({"projection_dim": 20}, "projection_dim 20 is not the 36"),
    ({"vision_config": {"model_type": "vit"}}, "vision_config.model_type is 'vit'; built are dinov2"),
]


def geometries() -> list[files.Config]:
    """Return the paper's choice, and one of the other projections, poolings and towers."""
    names = {"model_type": "freeze_align", "architectures": ["CLIP"], "text_pooling": "mean"}
    words = {"model_type": "xlm-roberta", "vocab_size": len(files.UNIGRAM_PIECES) + 1, "max_position_embeddings": 42}
    words |= {"pad_token_id": 1, "type_vocab_size": 1, "hidden_size": 36}
    chosen = {"local_vision_projection": "patch", "cls_vision_projection": "patch", "vis_pooling": "mean"}
    chosen |= {"local_text_projection": "patch", "text_projection": "mlp", "projection_dim": 36}
    first = {"text_config": TEXT | words, "vision_config": {**VISION, "image_size": 36, "patch_size": 12}, **chosen}
    bert = {"model_type": "bert", "vocab_size": len(files.BERT_WORDS), "max_position_embeddings": 48, "hidden_size": 48}
    chosen = {"local_vision_projection": "mlp", "cls_vision_projection": "linear", "vis_pooling": "max"}
    chosen |= {"local_text_projection": "linear", "text_projection": "patch", "projection_dim": 48}
    second = {"text_config": TEXT | bert, "vision_config": {**VISION, "image_size": 60, "patch_size": 10}, **chosen}
    return [names | each for each in (first, second)]


class Mlp(nn.Module):
    def __init__(self, taken: int, given: int) -> None:
        super().__init__()
        self.projection, self.fc = nn.Linear(taken, given), nn.Linear(given, given)
        self.layer_norm = nn.LayerNorm(given)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.projection(x)
        return self.layer_norm(self.fc(nn.functional.gelu(projected)) + projected)


class Two(nn.Module):
    def __init__(self, taken: int, given: int) -> None:
        super().__init__()
        self.linear_projection = nn.Sequential(nn.Linear(taken, given))
        self.non_linear_projection = nn.Sequential(nn.Linear(taken, given), nn.GELU(), nn.Linear(given, given))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_projection(x) + self.non_linear_projection(x)


def _projection(kind: str, taken: int, given: int) -> nn.Module:
    if kind == "patch":
        return nn.Sequential(nn.LayerNorm(taken), nn.Dropout(0), Two(taken, given))
    return Mlp(taken, given) if kind == "mlp" else nn.Linear(taken, given)


class Reference(nn.Module):
    """Section 3 of the paper, by the published `clip_adjustable_combined_vis_cls.CLIP`."""

    def __init__(self, config: files.Config) -> None:
        from transformers import AutoModel, BertConfig, Dinov2Config, XLMRobertaConfig

        super().__init__()
        kind = BertConfig if config["text_config"]["model_type"] == "bert" else XLMRobertaConfig
        self.visual_encoder = AutoModel.from_config(Dinov2Config(**config["vision_config"]))
        self.text_encoder = AutoModel.from_config(kind(**config["text_config"]))
        size, width = config["projection_dim"], config["vision_config"]["hidden_size"]
        for which in ("local_vision", "cls_vision", "local_text", "text"):
            taken = width if "vision" in which else size
            setattr(self, f"{which}_proj", _projection(config[f"{which}_projection"], taken, size))
        self.temp = nn.Parameter(torch.tensor(TEMPERATURE))
        self.config = config

    def images(self, pixel_values: Tensor) -> Tensor:
        hidden = self.visual_encoder(pixel_values).last_hidden_state
        patches = self.local_vision_proj(hidden)[:, 1:]
        pooled = patches.mean(1) if self.config["vis_pooling"] == "mean" else patches.max(1).values
        return nn.functional.normalize(pooled + self.cls_vision_proj(hidden[:, 0]), dim=-1)

    def texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.text_encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        tokens = self.local_text_proj(hidden) * attention_mask[:, :, None]
        return nn.functional.normalize(self.text_proj(tokens.sum(1) / attention_mask.sum(1, keepdim=True)), dim=-1)


def model(folder: Path) -> Reference:
    """Return the reference, whose weights follow from their names and shapes."""
    reference = Reference(json.loads((folder / "config.json").read_text()))
    files.draw(reference)
    reference.temp.data.fill_(TEMPERATURE)
    return reference.eval()


def save_model(folder: Path, config: files.Config) -> None:
    """Write the reference's weights, as the published code names them: its towers as checkpoints of theirs do."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True)
    files.write_json(folder / "config.json", config)
    reference = model(folder)
    towers = ("visual_encoder", "text_encoder")
    weights = {key: each for key, each in reference.state_dict().items() if not key.startswith(towers)}
    for tower in towers:
        getattr(reference, tower).save_pretrained(folder / tower)
        stored = load_file(folder / tower / "model.safetensors")
        weights |= {f"{tower}.{key}": each for key, each in stored.items()}
        shutil.rmtree(folder / tower)
    save_file({key: each.contiguous() for key, each in weights.items()}, folder / "model.safetensors")


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a crop, and the tokenizer of the text tower."""
    files.save_images(folder, "BitImageProcessor", **files.cropped(36))
    if config["text_config"]["model_type"] == "bert":
        files.save_bert_tokenizer(folder, 48)
    else:
        files.save_unigram_tokenizer(folder, 40)


processor = files.Apart


def expected(reference: Reference, inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return vectors of images, of texts, and logits."""
    images = reference.images(inputs["pixel_values"])
    texts = reference.texts(inputs["input_ids"], inputs["attention_mask"])
    return images, texts, images @ texts.T / reference.temp
