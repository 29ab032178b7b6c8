"""`pocketvlm sync` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path


def test_a_bundle_is_brought_to_a_folder_and_back_again_is_refused_where_nothing_was(
    pocketvlm, smolvlm_bundle: Path, tmp_path: Path
) -> None:
    place = tmp_path / "models"
    done = pocketvlm("sync", str(smolvlm_bundle), str(place), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"].startswith("0001-")
    assert (place / "current" / "manifest.json").is_file()
    refused = pocketvlm("sync", "--rollback", str(place))
    assert refused.returncode == 1
    assert "nothing was changed" in refused.stderr


def test_a_missing_destination_is_a_wrong_command_line(pocketvlm, smolvlm_bundle: Path) -> None:
    refused = pocketvlm("sync", str(smolvlm_bundle))
    assert refused.returncode == 2
    assert "sync BUNDLE DEST, or sync --rollback DEST" in " ".join(refused.stderr.split())
