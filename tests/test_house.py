"""The house rules that a linter cannot state: who may import what, and what the wheel holds."""

import ast
import importlib.util
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *("bundle", "commands", "devices", "export", "graphs", "pages"),
    *("quant", "runtime", "serving", "loadtests", "reference"),
)


def importers_of(package: str, library: str) -> set[str]:
    """Return the files of a package, relative to the root, that import a library anywhere."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] == library for name in names):
                found.add(path.relative_to(ROOT).as_posix())
    return found


def test_onnxruntime_is_not_imported_by_serving() -> None:
    assert importers_of("serving", "onnxruntime") == set()


def test_ray_is_imported_under_the_cluster_only() -> None:
    assert all(file.startswith("serving/cluster/") for file in importers_of("serving", "ray"))


def test_fastapi_is_imported_under_the_api_only() -> None:
    assert all(file.startswith("serving/api/") for file in importers_of("serving", "fastapi"))


def test_traces_are_the_business_of_one_file() -> None:
    assert importers_of("serving", "opentelemetry") - {"serving/api/traced.py"} == {"serving/tracing.py"}


def test_locust_files_import_none_of_ours() -> None:
    ours = {package for package in PACKAGES if package != "loadtests"}
    locust_files = importers_of("loadtests", "locust")
    assert locust_files
    assert not locust_files & set().union(*(importers_of("loadtests", package) for package in ours))


def test_a_server_runs_without_training_and_graph_libraries() -> None:
    blocked = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "optimum", "safetensors")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "import serving.edge.serve, serving.models.client, serving.api.app, bundle.directory, commands.ending"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_command_imports_nothing_heavy_until_a_subcommand_runs() -> None:
    program = (
        "import sys, commands.ending\n"
        "print([m for m in ('numpy', 'onnxruntime', 'torch', 'fastapi') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def our_texts() -> Iterator[tuple[str, str]]:
    """Every text file of the repository that a user may read, by its name relative to the root."""
    kinds = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".html", ".service", ".conf", ""}
    folders = [*PACKAGES, "tests", "docs", "k8s", "systemd", ".ci"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")] + [*ROOT.iterdir()]
    for path in files:
        if path.is_file() and path.suffix in kinds and "__pycache__" not in path.parts:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def test_nothing_advises_to_install_our_name_from_an_index() -> None:
    """The project is on no index: whoever registered the name there would be installed by our advice."""
    advice = re.compile(r"(pip install (-\S+ )*|install )['\"]?pocketvlm\b|pocketvlm\[\{?[a-z]", re.IGNORECASE)
    assert advice.search("pip install -U 'pocket" + "vlm'")
    assert advice.search("Install 'pocket" + "vlm[gpu]'")
    texts = dict(our_texts())
    assert {"README.md", "docs/deploy.md", "k8s/images/Dockerfile", "runtime/session.py", "pocketvlm.py"} <= set(texts)
    assert [name for name, text in texts.items() if advice.search(text)] == []


@pytest.mark.slow
def test_the_wheel_holds_exactly_our_packages(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {*PACKAGES, "pocketvlm.py"}
    assert {"quant/samples/texts.jsonl", "quant/samples/photographs.jsonl"} <= set(names)
    assert {"serving/page/index.html", "serving/page/app.js", "serving/page/samples/scene.png"} <= set(names)


def test_every_package_on_disk_is_in_the_wheels_list() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(ast.literal_eval(text.split("packages = ")[1].split("\n]")[0] + "\n]"))
    on_disk = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert listed == on_disk


@pytest.mark.parametrize("is_asked", [True, False])
def test_tests_of_a_gpu_fail_where_one_is_asked_for_and_none_is_seen(
    is_asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skipped, every one of them, `make test-gpu` would pass and have tested nothing."""
    spec = importlib.util.spec_from_file_location("gpu_conftest", ROOT / "tests/gpu/conftest.py")
    assert spec is not None
    assert spec.loader is not None
    suite = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(suite)
    monkeypatch.setattr(suite, "lacking", lambda: "no driver")
    config = SimpleNamespace(getoption=lambda name, default: is_asked)
    if is_asked:
        with pytest.raises(pytest.UsageError, match="no GPU seen, nothing was tested: no driver"):
            suite.pytest_collection_modifyitems(config, [])
    else:
        suite.pytest_collection_modifyitems(config, [])
    assert "tests/gpu --gpu" in (ROOT / "Makefile").read_text(encoding="utf-8")
