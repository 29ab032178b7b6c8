"""`pocketvlm export`: checkpoint to bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bundle.errors import CheckpointError, UnsupportedConfigError
from commands.options import JsonOption, OutputOption, OverwriteOption
from commands.terminal import EXIT_MISSED, print_json, print_manifest, progress

if TYPE_CHECKING:
    from bundle.directory import Bundle
    from export.family import Family
    from quant.quality.evaluation import Evaluation


def export(
    checkpoint: Annotated[
        str, typer.Argument(help="A folder, or the id of a model on the Hugging Face hub.", show_default=False)
    ],
    output: OutputOption,
    name: Annotated[
        str | None, typer.Option(help="Model id to serve it under. Default: the checkpoint folder's name.")
    ] = None,
    dialect: Annotated[Literal["contrib", "portable"], typer.Option(help="Operator set of the graphs.")] = "contrib",
    target: Annotated[
        Literal["cpu", "cuda"],
        typer.Option(help="cuda: a float16 bundle in the form that CUDA runs fastest, instead of the fp32 one."),
    ] = "cpu",
    decoder_gguf: Annotated[
        Path | None,
        typer.Option(help="llama.cpp file that replaces the checkpoint's decoder. Default: none.", show_default=False),
    ] = None,
    keep_quantized: Annotated[
        bool, typer.Option("--keep-quantized", help="Keep the blocks of --decoder-gguf instead of restoring float32.")
    ] = False,
    decoder_segments: Annotated[
        str | None,
        typer.Option(
            help="Layers before which the decoder's graph for prompts is cut, e.g. 2,8,16: requests may then drop "
            "image tokens inside the decoder. Default: not cut.",
            show_default=False,
        ),
    ] = None,
    length_groups: Annotated[
        int,
        typer.Option(
            min=1,
            help="Groups of layers that may keep different numbers of rows in the cache, as KV policies with budgets "
            "for each layer want it: as many as layers, or fewer.",
        ),
    ] = 1,
    image_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pixels of an image at most, where a model's images keep their shape: fewer tokens, less detail. "
            "Default: as the checkpoint's processor says, which may be 16 thousand tokens a photograph.",
            show_default=False,
        ),
    ] = None,
    smaller_images: Annotated[
        bool,
        typer.Option(
            "--smaller-images",
            help="The vision encoder takes smaller tiles as well, so that requests may have images encoded in less "
            "time (vision.method resize). Of idefics3 and smolvlm.",
        ),
    ] = False,
    task_vectors: Annotated[
        bool,
        typer.Option(
            "--task-vectors",
            help="The decoder's attention heads can be read and replaced, so that demonstrations may be kept as a task "
            "vector (POST /v1/prefixes, method task-vectors). For the CPU.",
        ),
    ] = False,
    skip_visual: Annotated[
        str | None,
        typer.Option(
            "--skip-visual",
            metavar="LAYERS",
            help="Layers of the decoder, such as 2,4,8-11, whose feed-forwards image tokens may skip (vision.method "
            "ima). For the CPU. Default: none.",
            show_default=False,
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FOLDER",
            help="A folder of a LoRA adapter that PEFT saved, merged into the weights. With a name, as often as there "
            "are adapters: all are kept beside the weights, and a request chooses, as its model, or as its task with "
            "--task embed. Default: none.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        Literal["embed", "both", "rank"] | None,
        typer.Option(
            help="embed: a model that answers makes vectors of images and texts instead (docs/embedders.md); both: it "
            "does both by one decoder; rank: it says how well a document fits a query. "
            "Default: as the checkpoint's architecture does.",
            show_default=False,
        ),
    ] = None,
    pooling: Annotated[
        Literal["last", "mean", "tokens"] | None,
        typer.Option(
            help="With --task, what becomes a vector: the last token's state, the mean of all, or every token's "
            "through the checkpoint's projection. Default: tokens where there is a projection, else last.",
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="With --task, how an input to embed is written: plain, gme, e5-v, lamra, mme5, colqwen2, "
            "colidefics3, or the file of a chat template; with rank, how a pair is: qwen3-reranker, lamra, or a file. "
            "Default: as the checkpoint's own writes a question, and qwen3-reranker.",
            show_default=False,
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--eval",
            help="With --keep-quantized or --target cuda: JSONL of {image, question, answer} that quality is measured "
            "on. Default: built-in texts and photographs.",
            show_default=False,
        ),
    ] = None,
    evaluate: Annotated[
        bool,
        typer.Option(help="With --keep-quantized or --target cuda: measure quality; without it the bundle is ungated."),
    ] = True,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint as a bundle of fp32 ONNX graphs, of a GGUF's own blocks, or of float16 for CUDA."""
    if decoder_segments is not None and (target == "cuda" or keep_quantized):
        raise UnsupportedConfigError(
            f"--decoder-segments {decoder_segments}: segments are cut of fp32 bundles and variants for the CPU; leave "
            "out --target cuda and --keep-quantized"
        )
    if length_groups != 1 and (target == "cuda" or keep_quantized or decoder_segments is not None):
        raise UnsupportedConfigError(
            f"--length-groups {length_groups}: layers are grouped in fp32 bundles and variants for the CPU, and "
            "segments are such groups; leave out --target cuda, --keep-quantized and --decoder-segments"
        )
    if image_pixels is not None and (target == "cuda" or keep_quantized):
        raise UnsupportedConfigError(
            f"--image-pixels {image_pixels} is for fp32 bundles and their variants; leave out --target cuda and "
            "--keep-quantized"
        )
    if smaller_images and (target == "cuda" or keep_quantized or dialect == "portable"):
        raise UnsupportedConfigError(
            "--smaller-images is of fp32 bundles and variants for the CPU; leave out --target cuda, --keep-quantized "
            "and --dialect portable"
        )
    if task_vectors and (target == "cuda" or keep_quantized or decoder_segments is not None):
        raise UnsupportedConfigError(
            "--task-vectors is of fp32 bundles and variants for the CPU, in one piece; leave out --target cuda, "
            "--keep-quantized and --decoder-segments"
        )
    if skip_visual is not None and (
        target == "cuda" or keep_quantized or decoder_segments is not None or task in ("embed", "rank")
    ):
        raise UnsupportedConfigError(
            f"--skip-visual {skip_visual}: feed-forwards are skipped in answers of fp32 bundles and variants for the "
            "CPU, in one piece; leave out --target cuda, --keep-quantized, --decoder-segments and --task embed"
        )
    if lora and (target == "cuda" or keep_quantized or decoder_gguf is not None):
        raise UnsupportedConfigError(
            f"--lora {lora[0]}: an adapter is merged into a checkpoint's own weights; leave out --target cuda, "
            "--keep-quantized and --decoder-gguf"
        )
    if task is None and (pooling is not None or template is not None):
        raise UnsupportedConfigError("--pooling and --template say how a model embeds; they want --task embed or both")
    if task is not None and (target == "cuda" or keep_quantized or decoder_gguf is not None):
        raise UnsupportedConfigError(
            f"--task {task} writes fp32 bundles, which quantize makes smaller; leave out --target cuda, "
            "--keep-quantized and --decoder-gguf"
        )
    if target == "cuda":
        from export.cuda_bundle import export_for_cuda

        _refuse_beside_cuda(dialect, keep_quantized)
        manifest = export_for_cuda(
            checkpoint,
            output,
            name=name,
            decoder_gguf=decoder_gguf,
            samples=(lambda bundle: _samples(bundle, evaluation)) if evaluate else None,
            check=_own_samples(evaluation) if evaluate else None,
            overwrite=overwrite,
            progress=progress,
        )
    elif keep_quantized:
        from export.kept_bundle import export_kept

        manifest = export_kept(
            checkpoint,
            output,
            _kept_file(decoder_gguf, dialect),
            name=name,
            samples=(lambda bundle: _samples(bundle, evaluation)) if evaluate else None,
            check=_own_samples(evaluation) if evaluate else None,
            overwrite=overwrite,
            progress=progress,
        )
    else:
        from export.embedding import EmbeddingOptions
        from export.exporter import export_checkpoint
        from export.skipping import listed_layers

        merged, beside = _adapters(lora or [])
        manifest = export_checkpoint(
            checkpoint,
            output,
            name=name,
            dialect=dialect,
            decoder_gguf=decoder_gguf,
            segments=_layers(decoder_segments),
            length_groups=length_groups,
            most_image_px=image_pixels,
            smaller_images=smaller_images,
            task_vectors=task_vectors,
            skip_visual=[] if skip_visual is None else listed_layers(skip_visual),
            lora=merged,
            adapters=beside,
            embedding=None
            if task is None
            else EmbeddingOptions(pooling, template, also_answers=task == "both", ranks=task == "rank"),
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print_json(manifest.model_dump(mode="json"))
    else:
        print_manifest(output, manifest)
    if manifest.has_failed_gate:
        raise typer.Exit(EXIT_MISSED)


def _adapters(given: Sequence[str]) -> tuple[Path | None, dict[str, Path]]:
    """Return the adapter to be merged, or those to be kept, by name.

    Raises:
        UnsupportedConfigError: Several are to be merged, some have names and others none, or two have one name.
    """
    named = [value.partition("=") for value in given if "=" in value and not Path(value).is_dir()]
    if not named and len(given) < 2:
        return (Path(given[0]) if given else None), {}
    beside = {name: Path(folder) for name, _, folder in named if name}
    if len(beside) != len(given):
        raise UnsupportedConfigError(
            f"--lora {' --lora '.join(given)}: one adapter is merged (--lora FOLDER), or each of several has a name of "
            "its own (--lora NAME=FOLDER)"
        )
    return None, beside


def _layers(listed: str | None) -> list[int]:
    try:
        return [] if listed is None else [int(number) for number in listed.split(",")]
    except ValueError:
        raise UnsupportedConfigError(
            f"--decoder-segments {listed}: give numbers of layers with commas between them, such as 2,8,16"
        ) from None


def _refuse_beside_cuda(dialect: str, keep_quantized: bool) -> None:
    if dialect != "contrib":
        raise UnsupportedConfigError(
            f"--target cuda wants --dialect contrib, not {dialect}, whose attention over a cache is not of its form"
        )
    if keep_quantized:
        raise UnsupportedConfigError(
            "--keep-quantized writes a GGUF's blocks for the CPU; leave out --target cuda, or --keep-quantized"
        )


def _kept_file(decoder_gguf: Path | None, dialect: str) -> Path:
    if decoder_gguf is None:
        raise CheckpointError("--keep-quantized keeps the blocks of a llama.cpp file; name it with --decoder-gguf FILE")
    if dialect != "contrib":
        raise UnsupportedConfigError(
            f"--keep-quantized wants --dialect contrib, not {dialect}: no standard operator multiplies such blocks"
        )
    return decoder_gguf


def _own_samples(file: Path | None) -> Callable[[Family, str], None] | None:
    """Return what reads a user's samples before the work, where there are some, and refuses what cannot pass."""
    if file is None:
        return None

    def check(family: Family, weights: str) -> None:
        from export.dims import task_of
        from quant.evaluation.gate_samples import questions_in, shown_in
        from quant.quality.gate import require_measurable

        task = task_of(family)
        if task in ("image-text-to-text", "dual-encoder"):
            is_dual = task == "dual-encoder"
            found = shown_in(file) if is_dual else questions_in(file)
            require_measurable(found, weights, is_dual=is_dual, has_limits=False)

    return check


def _samples(bundle: Bundle, file: Path | None) -> Evaluation:
    if file is not None:
        from quant.evaluation.gate_samples import read_samples

        return read_samples(file, bundle.manifest)
    from quant.samples.built_in import built_in_samples

    return built_in_samples(bundle, "evaluation")
