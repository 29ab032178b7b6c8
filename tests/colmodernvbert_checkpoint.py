"""A tiny ColModernVBERT checkpoint with random weights, as transformers saves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import save_model, save_smolvlm_processor, smolvlm_config
from reranker_checkpoints import modernbert_tower_shapes
from tokenizers import Tokenizer, processors
from weight_shapes import Config, Shapes, linear_shapes, tower_shapes


def config(**text: Any) -> Config:
    """Return a tiny config; arguments override the text's part."""
    own = smolvlm_config()
    special = {f"{name}_token_id": own["text_config"].get(f"{name}_token_id") for name in ("pad", "bos", "eos")}
    words = {
        "model_type": "modernbert",
        "vocab_size": own["text_config"]["vocab_size"],
        "hidden_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "max_position_embeddings": 2048,
        **special,
        **text,
    }
    vision = {**own["vision_config"], "model_type": "siglip_vision_model"}
    vlm = {"model_type": "modernvbert", "text_config": words, "vision_config": vision}
    vlm |= {"pixel_shuffle_factor": own["scale_factor"], "image_token_id": own["image_token_id"]}
    name = {"model_type": "colmodernvbert", "architectures": ["ColModernVBertForRetrieval"]}
    return {**name, "embedding_dim": 16, "vlm_config": vlm}


def save(folder: Path, **text: Any) -> Config:
    """Write a whole checkpoint into `folder`, in float32; return its config."""
    raw = config(**text)
    save_model(folder, raw, _shapes(raw))
    vlm = raw["vlm_config"]
    save_smolvlm_processor(folder, {**vlm, "scale_factor": vlm["pixel_shuffle_factor"]})
    (folder / "chat_template.jinja").unlink()
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    first, last = ("<|im_start|>", "<end_of_utterance>")
    around = [(token, backend.token_to_id(token)) for token in (first, last)]
    backend.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=around)
    backend.save(str(folder / "tokenizer.json"))
    return raw


def _shapes(raw: Config) -> Shapes:
    vlm = raw["vlm_config"]
    text, vision = vlm["text_config"], vlm["vision_config"]
    size, width = text["hidden_size"], vision["hidden_size"]
    found = modernbert_tower_shapes(text, "vlm.text_model.")
    found |= tower_shapes(vision, "vlm.vision_model.")
    found |= {"vlm.connector.modality_projection.weight": (size, width * vlm["pixel_shuffle_factor"] ** 2)}
    return found | linear_shapes("embedding_proj_layer", raw["embedding_dim"], size)
