"""`pocketvlm export --length-groups` as a caller meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundle.directory import open_bundle
from quant.kv.needs import missing


@pytest.mark.parametrize(("num_groups", "groups"), [(2, [0, 0, 1]), (3, [0, 1, 2])])
def test_layers_are_in_groups_and_policies_may_give_each_its_own(
    pocketvlm, checkpoint_of, tmp_path: Path, num_groups: int, groups: list[int]
) -> None:
    done = pocketvlm("export", checkpoint_of("smolvlm"), "-o", tmp_path / "bundle", "--length-groups", str(num_groups))
    assert done.returncode == 0, done.stderr
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert [state.group for state in manifest.states[::2]] == groups
    assert missing("pyramidkv", manifest) == missing("vl-cache", manifest) == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--length-groups", "4"), "the decoder has 3 layers"),
        (("--length-groups", "2", "--target", "cuda"), "leave out --target cuda"),
        (("--length-groups", "2", "--decoder-segments", "1"), "segments are such groups"),
    ],
)
def test_what_cannot_be_grouped_is_refused(
    pocketvlm, checkpoint_of, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    done = pocketvlm("export", checkpoint_of("smolvlm"), "-o", tmp_path / "bundle", *options)
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "bundle").exists()


def test_a_model_without_a_decoder_has_no_layers_to_group(pocketvlm, checkpoint_of, tmp_path: Path) -> None:
    done = pocketvlm("export", checkpoint_of("clip"), "-o", tmp_path / "bundle", "--length-groups", "2")
    assert done.returncode != 0
    assert "has none" in done.stderr


def test_smaller_images_are_of_the_bundle_for_the_cpu(pocketvlm, checkpoint_of, tmp_path: Path) -> None:
    done = pocketvlm("export", checkpoint_of("smolvlm"), "-o", tmp_path / "b", "--smaller-images", "--target", "cuda")
    assert done.returncode != 0
    assert "leave out --target cuda" in " ".join(done.stderr.split())


def test_task_vectors_are_of_the_bundle_for_the_cpu_in_one_piece(pocketvlm, checkpoint_of, tmp_path: Path) -> None:
    done = pocketvlm("export", checkpoint_of("smolvlm"), "-o", tmp_path / "b", "--task-vectors", "--target", "cuda")
    assert done.returncode != 0
    assert "leave out --target cuda, --keep-quantized and --decoder-segments" in " ".join(done.stderr.split())


def test_layers_to_be_skipped_are_of_the_bundle_for_the_cpu_in_one_piece(
    pocketvlm, checkpoint_of, tmp_path: Path
) -> None:
    done = pocketvlm("export", checkpoint_of("smolvlm"), "-o", tmp_path / "b", "--skip-visual", "1", "--task", "embed")
    assert done.returncode != 0
    assert "leave out --target cuda, --keep-quantized, --decoder-segments and --task embed" in " ".join(
        done.stderr.split()
    )
