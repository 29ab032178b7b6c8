"""What options of an export make of a family before its graphs are built, and which it refuses."""

from __future__ import annotations

from collections.abc import Sequence

from bundle.errors import UnsupportedConfigError
from export.checkpoint import Checkpoint
from export.config import with_length_groups
from export.decoders.decoder import Decoder
from export.embedding import EmbeddingOptions, found_embedding
from export.family import Family
from export.ranking import found_ranking
from export.segments import with_segments
from export.vision_language import VisionLanguage


def cut_decoder(family: Family, segments: Sequence[int]) -> None:
    """Let a family's decoder keep rows of another number in each of its segments.

    Raises:
        UnsupportedConfigError: It has no decoder, or no such layers.
    """
    if not isinstance(family, VisionLanguage):
        raise UnsupportedConfigError("--decoder-segments cuts a decoder, and the checkpoint's architecture has none")
    decoder = family.decoder
    if more := [spec.name for spec in (*decoder.sight_inputs, *decoder.inputs)]:
        raise UnsupportedConfigError(
            f"--decoder-segments: the decoder takes {', '.join(more)} beside hidden states, which its segments would "
            "not be fed"
        )
    if (window := decoder.window_tokens) is not None:
        raise UnsupportedConfigError(
            f"--decoder-segments: layers of the decoder see windows of {window} rows, and tokens that are dropped "
            "between segments leave no row to be counted"
        )
    refuse_fixed_states("--decoder-segments", decoder)
    refuse_shared_rows("--decoder-segments", decoder)
    decoder.config = with_segments(decoder.config, segments)


def group_layers(family: Family, num_groups: int) -> None:
    """Let groups of a decoder's layers keep rows of another number.

    Raises:
        UnsupportedConfigError: It has no decoder, fewer layers, or some that read the rows of others.
    """
    if not isinstance(family, VisionLanguage):
        raise UnsupportedConfigError("--length-groups is of a decoder, and the checkpoint's architecture has none")
    decoder = family.decoder
    refuse_fixed_states("--length-groups", decoder)
    refuse_shared_rows("--length-groups", decoder)
    decoder.config = with_length_groups(decoder.config, num_groups)


def refuse_beside_adapters(skip_visual: Sequence[int]) -> None:
    """Refuse what runs tokens apart from the sequences that they are of.

    Raises:
        UnsupportedConfigError: It was asked for.
    """
    if skip_visual:
        raise UnsupportedConfigError(
            "--skip-visual: the layers that image tokens skip run the others' tokens in one row, and would not know "
            "which adapter each is of; leave it out, or merge one adapter with --lora FOLDER"
        )


def refuse_fixed_states(option: str, decoder: Decoder) -> None:
    """Refuse what is for layers that lose rows where some layers have no rows.

    Raises:
        UnsupportedConfigError: Names states that have none.
    """
    if fixed := [state for state in decoder.states if state.kind != "rows"]:
        raise UnsupportedConfigError(
            f"{option} is for decoders all of whose layers keep a row per token, so that some may be dropped; this one "
            f"keeps {', '.join(state.input for state in fixed[:3])}, of kind {fixed[0].kind}. Leave {option} out"
        )


def refuse_shared_rows(option: str, decoder: Decoder) -> None:
    """Refuse what is for layers that keep rows of another number where some keep none and read another's.

    Raises:
        UnsupportedConfigError: Names the layers that read another's rows.
    """
    if readers := [at for at in range(decoder.config.num_layers) if decoder.source_of(at) is not None]:
        raise UnsupportedConfigError(
            f"{option} is for layers that keep rows of their own, so that some may be dropped by layer; layers "
            f"{', '.join(map(str, readers))} read those of other layers. Leave {option} out"
        )


def take_smaller_images(family: Family) -> None:
    """Let a vision graph take smaller tiles.

    Raises:
        UnsupportedConfigError: Its positions are those of a full tile alone.
    """
    if not (isinstance(family, VisionLanguage) and family.can_take_smaller_images):
        raise UnsupportedConfigError(
            f"--smaller-images: {family.config['model_type']} has no positions for images smaller than a tile, or "
            "keeps the shape of images anyway; idefics3 and smolvlm have them"
        )
    family.takes_smaller_images = True


def make_embed(family: Family, source: Checkpoint, options: EmbeddingOptions) -> None:
    """Let a family's decoder give vectors.

    Raises:
        UnsupportedConfigError: It has no decoder, embeds as it is, sees images with a question, reads no text alone, or
            its layers would be cut or grouped.
    """
    model, asked = source.config["model_type"], "rank" if options.ranks else "both" if options.also_answers else "embed"
    if not isinstance(family, VisionLanguage) or family.embedding is not None:
        raise UnsupportedConfigError(
            f"--task {asked}: {model} makes vectors as it is; leave out --task, --pooling and --template"
        )
    if family.decoder.config.num_length_groups > 1:
        raise UnsupportedConfigError(
            f"--task {asked}: a prompt is run once and keeps no rows; leave out --decoder-segments and --length-groups"
        )
    if family.question is not None:
        raise UnsupportedConfigError(
            f"--task {asked}: what {model} sees of an image depends on a question, and an input to be embedded or "
            "ranked asks none; take a model whose vision encoder reads images alone"
        )
    if family.wants_image:
        raise UnsupportedConfigError(
            f"--task {asked}: {model} looks at one image in every prompt, and inputs may be texts alone; take a model "
            "that reads texts without an image"
        )
    family.embedding = found_ranking(source, options) if options.ranks else found_embedding(source, options)
