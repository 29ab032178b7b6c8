from pathlib import Path

import numpy as np
import pytest

from bundle.errors import BundleFileError
from bundle.visual_exit import Router, load_routers, save_routers

WIDTH = 4
ROUTER = Router(np.arange(18, dtype=np.float32).reshape(2, 9), np.array([1, 2, 3], np.float32))


def test_routers_come_back_by_their_layer(tmp_path: Path) -> None:
    save_routers(tmp_path / "r.npz", {3: ROUTER, 12: ROUTER})
    found = load_routers(tmp_path / "r.npz", WIDTH)
    assert list(found) == [3, 12]
    np.testing.assert_array_equal(found[12].hidden, ROUTER.hidden)
    np.testing.assert_array_equal(found[12].out, ROUTER.out)


def test_routers_of_another_width_are_refused(tmp_path: Path) -> None:
    save_routers(tmp_path / "r.npz", {3: ROUTER})
    with pytest.raises(BundleFileError, match=r"before layer 3 is float32 \[2, 9\].*\[R, 17\]"):
        load_routers(tmp_path / "r.npz", 8)


def test_routers_of_another_type_are_refused(tmp_path: Path) -> None:
    save_routers(tmp_path / "r.npz", {3: Router(ROUTER.hidden.astype(np.float64), ROUTER.out)})
    with pytest.raises(BundleFileError, match="float64"):
        load_routers(tmp_path / "r.npz", WIDTH)


@pytest.mark.parametrize("key", ["x.hidden", "3.hidden"])
def test_a_file_of_other_arrays_is_refused(tmp_path: Path, key: str) -> None:
    np.savez(tmp_path / "r.npz", **{key: ROUTER.hidden})
    with pytest.raises(BundleFileError, match="missing or damaged"):
        load_routers(tmp_path / "r.npz", WIDTH)


def test_a_file_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "r.npz", **{"3.hidden": np.zeros((1 << 13, 1 << 10), np.float32)})
    with pytest.raises(BundleFileError, match="at most 1024 of 16777216"):
        load_routers(tmp_path / "r.npz", WIDTH)
