"""fastembed on ONNX Runtime, from JPEGs to CLIP's vectors: `python -m loadtests.peers.clip_fastembed FOLDER`.

It runs in an environment of its own, and imports nothing of ours but this folder. With `--from CHECKPOINT` it writes
FOLDER, in the layout of the model that fastembed would fetch, by torch's own exporter, and ends.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from loadtests.peers.measures import Measure
from loadtests.peers.photographs import Photographs
from loadtests.peers.worker import Prepare, Work, serve

_MODEL = "Qdrant/clip-ViT-B-32-vision"
_OPSET = 17


def write_model(checkpoint: Path, folder: Path) -> None:
    """Write a checkpoint's image tower as fastembed wants it: `model.onnx` and the processor's settings."""
    import torch
    from transformers import CLIPVisionModelWithProjection

    class Tower(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = CLIPVisionModelWithProjection.from_pretrained(checkpoint, attn_implementation="eager").eval()

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.model(pixel_values=pixel_values).image_embeds

    folder.mkdir(parents=True)
    torch.onnx.export(
        Tower(),
        (torch.zeros(1, 3, 224, 224),),
        folder / "model.onnx",
        input_names=["pixel_values"],
        output_names=["image_embeds"],
        dynamic_axes={"pixel_values": {0: "batch"}, "image_embeds": {0: "batch"}},
        opset_version=_OPSET,
        dynamo=False,
    )
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(checkpoint / name, folder / name)


def open_system(folder: Path, threads: int) -> Mapping[str, Prepare]:
    """Return what prepares images of a CLIP."""
    from fastembed import ImageEmbedding
    from PIL import Image

    model, photographs = ImageEmbedding(_MODEL, threads=threads, specific_model_path=str(folder)), Photographs()

    def embed(measure: Measure) -> Work:
        files = photographs.take(measure.size)

        def work() -> None:
            list(model.embed([Image.open(BytesIO(file)) for file in files], batch_size=measure.size))

        return work, 1

    return {"embed": embed}


def main() -> None:
    """Write a model, or answer the comparison's questions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--from", type=Path, dest="checkpoint")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.checkpoint is not None:
        write_model(options.checkpoint, options.folder)
        return
    serve(lambda: open_system(options.folder, options.threads), ("fastembed", "onnxruntime"))


if __name__ == "__main__":
    main()
