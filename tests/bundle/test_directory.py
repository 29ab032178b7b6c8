"""A bundle is opened whole or refused, and written whole or not at all."""

import json
import shutil
from pathlib import Path

import pytest

from bundle.directory import MANIFEST, Bundle, open_bundle, read_manifest, seal, sha256_of, write_aside
from bundle.errors import BundleError, BundleFileError, BundleFormatError, GateError
from bundle.gates import Gate, Unmeasured
from bundle.manifest import Manifest


@pytest.fixture
def copy(clip_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(clip_bundle, tmp_path / "bundle"))


def test_an_untouched_bundle_opens(copy: Path) -> None:
    assert open_bundle(copy) == Bundle(copy, read_manifest(copy))


def test_every_file_but_the_manifest_is_recorded(copy: Path) -> None:
    recorded = open_bundle(copy).manifest.files
    assert set(recorded) == {path.name for path in copy.iterdir()} - {MANIFEST}
    assert all(record.sha256 == sha256_of(copy / name) for name, record in recorded.items())


def test_one_changed_byte_is_found_by_its_digest(copy: Path) -> None:
    weights = copy / "vision_encoder.onnx.data"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleFileError, match=r"vision_encoder\.onnx\.data was altered"):
        open_bundle(copy)
    assert open_bundle(copy, verify=False)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BundleFileError, match=r"tokenizer\.json is missing"):
        open_bundle(copy, verify=False)


def test_a_name_that_no_file_can_have_is_told(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"]["x" * 300] = manifest["files"]["tokenizer.json"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleFileError, match="cannot be read: File name too long"):
        open_bundle(copy, verify=False)


def test_a_truncated_file_is_refused_without_reading_it(copy: Path) -> None:
    graph = copy / "text_encoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(BundleFileError, match="expected"):
        open_bundle(copy, verify=False)


@pytest.mark.parametrize(
    "change", [{"format_version": 3}, {"surprise": 1}, {"task": "telepathy"}, {"components": {"decoder": {}}}]
)
def test_a_manifest_of_another_form_is_refused(copy: Path, change: dict[str, object]) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(manifest | change))
    with pytest.raises(BundleFormatError, match=next(iter(change))):
        open_bundle(copy)


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BundleFormatError, match="pocketvlm export"):
        open_bundle(tmp_path)


def test_a_manifest_cannot_reach_outside_its_folder(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    outside = copy.parent / "outside.txt"
    outside.write_text("x")
    manifest["files"]["../outside.txt"] = {"size_bytes": 1, "sha256": sha256_of(outside)}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleFormatError, match="own folder"):
        open_bundle(copy)


def test_a_failed_gate_is_refused_unless_asked_for(copy: Path) -> None:
    gate = Gate(name="clear_agreement", value=0.5, limit=0.95, direction="min", n=10, passed=False)
    seal(copy, read_manifest(copy).model_copy(update={"gates": (gate,)}))
    with pytest.raises(GateError, match=r"clear_agreement 0.5 on 10, needs >= 0.95"):
        open_bundle(copy)
    assert open_bundle(copy, allow_ungated=True).manifest.has_failed_gate


@pytest.mark.parametrize("basis", [None, "canary"])
def test_quantized_weights_that_were_never_measured_on_samples_are_refused(copy: Path, basis: str | None) -> None:
    manifest = quantized(read_manifest(copy))
    gate = Gate(name="canary_cosine", value=1, limit=0.9, direction="min", n=1, passed=True, basis=basis or "samples")
    seal(copy, manifest.model_copy(update={"gates": (gate,) if basis else ()}))
    with pytest.raises(GateError, match=r"never measured on samples .*text_encoder int8.*without --no-evaluate"):
        open_bundle(copy)
    assert open_bundle(copy, allow_ungated=True).manifest.is_gated is False


def test_quantized_weights_that_passed_on_samples_open(copy: Path) -> None:
    gate = Gate(name="cosine_mean", value=1, limit=0.9, direction="min", n=300, passed=True)
    seal(copy, quantized(read_manifest(copy)).model_copy(update={"gates": (gate,)}))
    assert open_bundle(copy).manifest.is_gated is True


def test_a_variant_is_served_by_what_was_measured_whatever_could_not_be(copy: Path) -> None:
    gate = Gate(name="kl_mean", value=0.01, limit=0.02, direction="max", n=300, passed=True)
    left = Unmeasured(name="image_sensitivity", reason="no sample has an image")
    seal(copy, quantized(read_manifest(copy)).model_copy(update={"gates": (gate,), "unmeasured": (left,)}))
    assert open_bundle(copy).manifest.is_gated is True
    assert open_bundle(copy).manifest.unmeasured == (left,)


def test_a_variant_of_which_nothing_could_be_measured_is_refused(copy: Path) -> None:
    left = Unmeasured(name="image_sensitivity", reason="no sample has an image")
    seal(copy, quantized(read_manifest(copy)).model_copy(update={"unmeasured": (left,)}))
    with pytest.raises(GateError, match="never measured on samples"):
        open_bundle(copy)


def test_an_export_is_its_own_reference(copy: Path) -> None:
    assert open_bundle(copy).manifest.is_gated is None


def quantized(manifest: Manifest) -> Manifest:
    part = manifest.components["text_encoder"].model_copy(update={"scheme": "int8"})
    return manifest.model_copy(update={"components": {**manifest.components, "text_encoder": part}})


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def write() -> None:
        with write_aside(tmp_path / "new") as aside:
            (aside / "part").write_text("x")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_leaves_the_old_bundle(copy: Path) -> None:
    before = open_bundle(copy)
    with pytest.raises(RuntimeError), write_aside(copy, overwrite=True):
        raise RuntimeError
    assert open_bundle(copy) == before


def test_an_existing_bundle_is_replaced_only_when_told(copy: Path) -> None:
    with pytest.raises(BundleError, match="--overwrite"), write_aside(copy):
        pass
    with write_aside(copy, overwrite=True) as aside:
        (aside / "new").write_text("x")
    assert [path.name for path in copy.iterdir()] == ["new"]


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(BundleError, match="left alone"), write_aside(tmp_path, overwrite=True):
        pass
    assert (tmp_path / "precious.txt").exists()


def test_a_bundle_that_cannot_be_put_in_place_leaves_the_old_one(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = open_bundle(copy), Path.rename

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OSError, match="no space"), write_aside(copy, overwrite=True) as aside:
        (aside / "new").write_text("x")
    assert open_bundle(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_link_is_followed_and_stays_a_link(copy: Path) -> None:
    link = copy.parent / "link"
    link.symlink_to(copy)
    with write_aside(link, overwrite=True) as aside:
        (aside / "new").write_text("x")
    assert link.is_symlink()
    assert [path.name for path in copy.iterdir()] == ["new"]


def test_a_place_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="cannot be written"), write_aside(tmp_path / "file" / "bundle"):
        pytest.fail("the block must not run")
