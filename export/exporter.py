"""A checkpoint turned into a bundle."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

from bundle.directory import Bundle, seal, write_aside
from bundle.errors import BundleError, CheckpointError, UnsupportedConfigError
from bundle.json_file import printable
from bundle.machine import own_version
from bundle.manifest import (
    Component,
    ComponentName,
    Dialect,
    Manifest,
    Segment,
    check_name,
)
from bundle.states import State
from bundle.visual_exit import VISUAL_EXIT, load_routers
from export.adapter import Adapter
from export.adapters import ADAPTERS, found_adapters
from export.architectures import load_family, may_lack_its_tower
from export.byte_pairs import MERGES
from export.checkpoint import BIN_PATTERNS, TOWER_FOLDER, Checkpoint
from export.cross_encoder import CrossEncoder
from export.dims import decoder_dims, dual_dims, embedder_dims, image_vectors, pair_dims, task_of
from export.dual_encoder import DualEncoder
from export.embedding import EmbeddingOptions
from export.family import Family, GraphPlan
from export.goldens import Canary, can_record, record_goldens
from export.graph import build_model, write_model
from export.image_embedder import ImageEmbedder
from export.nn.dialects import DIALECTS
from export.processor import ProcessorFiles, convert_processor, image_settings
from export.segments import write_segments
from export.shaping import cut_decoder, group_layers, make_embed, refuse_beside_adapters, take_smaller_images
from export.skipping import with_skipped_layers
from export.task_vectors import with_open_heads
from export.vision_language import VisionLanguage
from export.vocabulary import Vocabulary
from export.weights import WeightSource

if TYPE_CHECKING:
    from export.gguf_decoder import GgufTensor

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SAFETENSORS = "*.safetensors"
_HUB_PATTERNS = ["*.json", _SAFETENSORS, "*.jinja", MERGES, VISUAL_EXIT]


def export_checkpoint(
    checkpoint: str | Path,
    output: Path,
    *,
    name: str | None = None,
    dialect: Dialect = "contrib",
    decoder_gguf: Path | None = None,
    segments: Sequence[int] = (),
    length_groups: int = 1,
    most_image_px: int | None = None,
    smaller_images: bool = False,
    task_vectors: bool = False,
    skip_visual: Sequence[int] = (),
    lora: Path | None = None,
    adapters: Mapping[str, Path] | None = None,
    embedding: EmbeddingOptions | None = None,
    overwrite: bool = False,
    refuse: Callable[[str, Sequence[ir.Graph], Sequence[State]], None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Write the bundle of a Hugging Face checkpoint and return its manifest.

    Weights are converted to float32 one at a time, so that the memory needed is that of the largest few. `output`
    appears whole or not at all.

    Args:
        checkpoint: A local folder, or a hub id, whose files are then fetched into the Hugging Face cache.
        output: The bundle's folder.
        name: The served model id; the checkpoint's last path component by default.
        dialect: Which operators the graphs use.
        decoder_gguf: A llama.cpp file whose weights take the place of the checkpoint's decoder.
        segments: Layers before which the decoder's graph for prompts is cut, once more beside the whole one.
        length_groups: Groups of neighbouring layers that may keep different numbers of rows; segments are such groups.
        most_image_px: Pixels of an image at most, where images keep their shape; None: as the processor says.
        smaller_images: The vision graph takes tiles smaller than full ones as well, for `vision.method` resize.
        task_vectors: The decoder's heads can be read and replaced, for prefixes of the method task-vectors.
        skip_visual: Layers of the decoder whose feed-forwards image tokens may skip, for `vision.method` ima.
        lora: A folder of an adapter that PEFT saved, merged into the weights.
        adapters: Such folders by name, kept beside the weights of a decoder; a request chooses one.
        embedding: Make vectors, in the place of answers or beside them; None: as the architecture does.
        overwrite: Replace a bundle that stands at `output`.
        refuse: Given name, graphs and states before a weight is read; raises where the caller has no use for them.
        progress: Called with a line at each step.

    Raises:
        CheckpointError: The checkpoint is absent, broken, of an unknown architecture, or asks for something that is
            not built; its subclasses say which.
        BundleError: `output` exists.
    """
    say = progress or (lambda line: None)
    folder, label = located(str(checkpoint), say)
    label = printable(label)
    bundle_name = checked_name(name or label.rsplit("/", 1)[-1])
    source = with_its_tower(Checkpoint.open(folder), say)
    family = load_family(source.config)
    if isinstance(family, VisionLanguage) and not Path(checkpoint).expanduser().is_dir():
        _fetch_folders(str(checkpoint), family)
    if isinstance(family, VisionLanguage) and family.reads_vocabulary:
        family.stated_ids = Vocabulary.read(folder, lower_cases=False).ids
    if family.reads_image_settings:
        family.stated_images = image_settings(folder)
    adapter = None if lora is None else Adapter.open(lora)
    lowering = DIALECTS[dialect]()
    if segments:
        cut_decoder(family, segments)
    elif length_groups != 1:
        group_layers(family, length_groups)
    if smaller_images:
        take_smaller_images(family)
    if embedding is not None:
        make_embed(family, source, embedding)
    beside = found_adapters(folder, family, adapters or {}, bundle_name)
    if beside is not None and beside.answers:
        refuse_beside_adapters(skip_visual)
    plans = family.graphs(lowering)
    say(f"building {len(plans)} graphs for {source.config['model_type']}")
    models = {part: build_model(part, plan, lowering) for part, plan in plans.items()}
    if refuse is not None:
        refuse(
            bundle_name,
            [model.graph for model in models.values()],
            [state for plan in plans.values() for state in plan.states],
        )
    decoder = None if decoder_gguf is None else read_decoder(decoder_gguf, family, folder)
    weights = WeightSource(source, family, [model.graph for model in models.values()], decoder, adapter)
    weights.fill()
    weights.require_all_used()
    if task_vectors:  # before adapters, which then read the heads that are replaced as the layers that they change do
        plans = {**plans, "decoder": with_open_heads(models, plans, family)}
    if beside is not None:
        plans = beside.put_into(models, plans)
    if skip_visual:
        plans = {**plans, "decoder": with_skipped_layers(models, plans, family, skip_visual)}
    with write_aside(output, overwrite=overwrite) as aside:
        files = convert_processor(folder, family, aside, most_image_px)
        _require_agreement(family, files)
        if files.note is not None:
            say(files.note)
        for setting in files.not_applied:
            say(f"generation_config.json: {setting} is left out; answers are sampled without it")
        components = _write_all(models, plans, aside, say)
        states = tuple(state for plan in plans.values() for state in plan.states)
        manifest = Manifest(
            name=bundle_name,
            source=label,
            source_sha256=source.digest(
                decoder_gguf, *(() if adapter is None else adapter.files), *(() if beside is None else beside.files)
            ),
            created_by=f"pocketvlm {own_version()}",
            model_type=source.config["model_type"],
            task=task_of(family),
            dialect=dialect,
            components=components,
            states=states,
            segments=_segments(aside, components, states, family, say) if segments else (),
            decoder=decoder_dims(family, models, beside) if isinstance(family, VisionLanguage) else None,
            image_prompt=files.image_prompt,
            grounding=files.grounding,
            question=files.question,
            dual=dual_dims(family, files, weights, source) if isinstance(family, DualEncoder) else None,
            pairs=pair_dims(family, files) if isinstance(family, CrossEncoder) else None,
            embedder=embedder_dims(family, source) if isinstance(family, VisionLanguage) else None,
            image_vectors=image_vectors(family, source) if isinstance(family, ImageEmbedder) else None,
            bos_token_id=files.bos_token_id,
            eos_token_ids=files.eos_token_ids,
            template_tokens=files.template_tokens,
        )
        if segments:
            _copy_routers(folder, family, aside, say)
        say("computing digests")
        bundle = seal(aside, manifest)
        _record(bundle, family, files, say)
        return seal(aside, manifest, unchanged=bundle.manifest.files).manifest


def checked_name(name: str) -> str:
    """Return a model's id that a user chose.

    Raises:
        BundleError: It is of no use as one.
    """
    try:
        return check_name(name)
    except ValueError as error:
        raise BundleError(f"{error}. Choose another --name.") from error


def read_decoder(file: Path, family: Family, checkpoint: Path) -> dict[str, GgufTensor]:
    """Return the tensors of a GGUF file under the names of the graphs, not yet read.

    Args:
        file: The GGUF.
        family: Of the checkpoint.
        checkpoint: Its folder, whose tokens the file has.

    Raises:
        CheckpointError: Not a GGUF file, or of another decoder than the checkpoint's.
        UnsupportedConfigError: The checkpoint has no decoder, or the file one that is not read.
    """
    if not isinstance(family, VisionLanguage):
        raise UnsupportedConfigError(f"{file.name} brings a decoder, and the checkpoint's architecture has none")
    from export.gguf_decoder import read_gguf, require_vocabulary

    found = read_gguf(file, family.decoder.config, family.text_prefix)
    require_vocabulary(file, Vocabulary.read(checkpoint, lower_cases=False).ids)
    return found


def located(
    checkpoint: str, say: Callable[[str], None], patterns: Sequence[str] = _HUB_PATTERNS, ignored: str = "*/*"
) -> tuple[Path, str]:
    """Return the checkpoint's folder, fetched if it is a hub id, and what the manifest calls it.

    Args:
        checkpoint: A folder or a hub id.
        say: Told of a fetch.
        patterns: Of the files that are fetched.
        ignored: Pattern of files that are not, whatever `patterns` says.

    Raises:
        CheckpointError: It is neither there nor could be fetched.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder, folder.resolve().name
    if not _HUB_ID.fullmatch(checkpoint):
        raise CheckpointError(f"{checkpoint} is not a folder, nor does it look like a hub id (owner/name)")
    say(f"fetching {checkpoint} from the Hugging Face hub")
    try:
        fetched = Path(snapshot_download(checkpoint, allow_patterns=[*patterns], ignore_patterns=ignored))
        if _SAFETENSORS in patterns and not any(fetched.glob(_SAFETENSORS)):
            for more in BIN_PATTERNS:
                snapshot_download(checkpoint, allow_patterns=[*more], ignore_patterns=ignored)
                if any(any(fetched.glob(pattern)) for pattern in more):
                    break
        return fetched, checkpoint
    except (HTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"{checkpoint} is not a local folder and could not be fetched from the hub "
            f"({type(error).__name__}). Check the name and the network, or pass the folder of a downloaded checkpoint."
        ) from error


def hub_files(checkpoint: str) -> tuple[str, ...]:
    """Return the names of a hub repository's files; none of a folder, nor where the hub does not tell."""
    if Path(checkpoint).expanduser().is_dir() or not _HUB_ID.fullmatch(checkpoint):
        return ()
    try:
        return tuple(list_repo_files(checkpoint))
    except (HTTPError, HFValidationError, OSError):  # whoever fetches says what is wrong, or has the files already
        return ()


def with_its_tower(source: Checkpoint, say: Callable[[str], None]) -> Checkpoint:
    """Return a checkpoint with the tower that its config names, fetched where another repository holds it.

    Raises:
        CheckpointError: It is not there.
    """
    named = source.lacking_tower
    if named is None or not may_lack_its_tower(source.config):
        return source
    try:
        return source.with_tower(located(named, say)[0])
    except CheckpointError as error:
        raise CheckpointError(
            f"the checkpoint has no weights of its tower, mm_vision_tower {named!r}: {error}. Put the tower's "
            f"config.json, preprocessor_config.json and weights into {source.folder / TOWER_FOLDER}"
        ) from error


def _fetch_folders(hub_id: str, family: VisionLanguage) -> None:
    """Fetch what lies in folders of its own: a vision encoder's tokenizer of questions, and adapters.

    Raises:
        CheckpointError: It could not be fetched.
    """
    if family.own_adapters:
        located(hub_id, lambda line: None, [f"{ADAPTERS}/*"], "")
    if family.question is not None and family.question.folder:
        located(hub_id, lambda line: None, [f"{family.question.folder}/*.json"], "")


def _require_agreement(family: Family, files: ProcessorFiles) -> None:
    """Check that the preprocessing yields what the graphs take.

    Raises:
        UnsupportedConfigError: Another number of image tokens, or a token beyond the embedding table.
    """
    if files.last_token is not None and files.last_token[1] >= family.vocab_size:
        token, token_id = files.last_token
        raise UnsupportedConfigError(
            f"tokenizer.json gives {token!r} the id {token_id}, the model embeds {family.vocab_size} rows: a text with "
            "that token could not be read. Tokenizer and weights do not belong together."
        )
    if files.image_prompt is None or not isinstance(family, VisionLanguage):
        return
    if family.tokens_per_tile is not None and files.image_prompt.tokens_per_tile != family.tokens_per_tile:
        raise UnsupportedConfigError(
            f"the processor writes {files.image_prompt.tokens_per_tile} tokens per image, "
            f"the vision tower makes {family.tokens_per_tile} features"
        )


def _write_all(
    models: dict[ComponentName, ir.Model],
    plans: dict[ComponentName, GraphPlan],
    folder: Path,
    say: Callable[[str], None],
) -> dict[ComponentName, Component]:
    components: dict[ComponentName, Component] = {}
    for part, model in models.items():
        components[part] = write_model(model, folder, plans[part])
        say(f"wrote {components[part].file}: {components[part].weight_bytes / 1e6:.1f} MB of weights")
    return components


def _segments(
    folder: Path,
    components: dict[ComponentName, Component],
    states: Sequence[State],
    family: Family,
    say: Callable[[str], None],
) -> tuple[Segment, ...]:
    if not isinstance(family, VisionLanguage):
        return ()
    return write_segments(folder, components["decoder"], states, family.decoder.config, say)


def _copy_routers(checkpoint: Path, family: Family, aside: Path, say: Callable[[str], None]) -> None:
    """Take the networks of a checkpoint that let image tokens leave early, where it has some.

    Raises:
        BundleFileError: They are damaged, or another decoder's.
    """
    path = checkpoint / VISUAL_EXIT
    if not path.is_file() or not isinstance(family, VisionLanguage):
        return
    routers = load_routers(path, family.decoder.config.hidden_size)
    shutil.copyfile(path, aside / VISUAL_EXIT)
    say(f"{VISUAL_EXIT}: image tokens may leave before the layers {', '.join(map(str, routers))}")


def _record(bundle: Bundle, family: Family, files: ProcessorFiles, say: Callable[[str], None]) -> None:
    if not can_record():
        say("no golden.npz: ONNX Runtime is not installed, so loads of this bundle cannot be checked against it")
        return
    say("recording golden outputs")
    asked = family.question if isinstance(family, VisionLanguage) else None
    question_vocab = 1 if asked is None else asked.vocab_size
    record_goldens(bundle, Canary.make(files.image_spec, family.vocab_size, files.eos_token_ids, question_vocab))
