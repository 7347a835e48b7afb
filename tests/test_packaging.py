"""What is installed, what it asks for, and which part may import which."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

import umarvel_hf
from foreign import CHECKOUT, ForeignEnvironment

ROOMS = {"umarvel_hf": "umarvel_hf", "modeling": "umarvel_hf/modeling", "trainer": "umarvel_hf/trainer"}
HEAVY = {"PIL", "datasets", "faiss", "huggingface_hub", "numpy", "sentence_transformers", "torch", "transformers"}

# Imports point down: a part imports from the lines above its own, and from itself.
LAYERS = [
    {"_torchvision", "modeling", "progress", "recipes", "vision"},
    {"chat_template", "fingerprint", "hub", "messages", "packing", "prefix", "records"},
    {"cards", "data", "families", "pictures", "planning", "store"},
    {"encoding"},
    {"search"},
    {"checkpoint", "devices", "emoji", "negatives"},
    {"conversion", "corpus", "exporting", "fetch", "index", "mining", "reranking"},
    {"approximate", "charts", "evaluation", "reranker_checkpoint", "smollm2", "teaching"},
    {"report", "searching", "trainer"},
    {"demo", "doctor", "measuring"},
    {"cli"},
]

# package: the library file that uses it, the test that exercises it
TEN_PACKAGES = {
    "accelerate": (
        "trainer/losses.py",
        "tests/test_losses.py::test_two_ranks_with_four_rows_train_as_one_with_eight",
    ),
    "datasets": (
        "trainer/rows.py",
        "tests/test_sources.py::test_captions_are_read_from_files_and_folders",
    ),
    "evaluate": (
        "umarvel_hf/evaluation/evaluate_metrics/__init__.py",
        "tests/test_metrics.py::test_the_metric_of_evaluate_agrees_also_when_loaded_from_its_folder",
    ),
    "faiss": ("umarvel_hf/index.py", "tests/test_index.py::test_search_finds_what_a_full_product_finds"),
    "huggingface_hub": ("umarvel_hf/hub.py", "tests/test_cli.py::test_new_takes_a_base_from_the_hub"),
    "peft": ("umarvel_hf/conversion.py", "tests/test_conversion.py::test_an_adapter_is_merged_as_by_hand"),
    "safetensors": (
        "umarvel_hf/conversion.py",
        "tests/test_conversion.py::test_a_stored_temperature_must_be_above_zero",
    ),
    "sentence_transformers": (
        "modeling/sentence_transformers_umarvel.py",
        "tests/test_golden.py::test_encode_gives_the_references_vectors_and_token_ids",
    ),
    "torch": (
        "modeling/modeling_umarvel.py",
        "tests/test_modeling.py::test_vectors_are_float32_of_length_one_in_every_dtype",
    ),
    "transformers": (
        "modeling/modeling_umarvel.py",
        "tests/test_golden.py::test_a_process_without_our_package_gives_them_too",
    ),
}


def library_files() -> list[Path]:
    return sorted(path for room in ROOMS for path in (CHECKOUT / room).rglob("*.py"))


def part_of(path: Path) -> str:
    """``umarvel_hf/evaluation/metrics.py`` belongs to ``evaluation``, ``trainer/losses.py`` to ``trainer``."""
    room, *rest = path.relative_to(CHECKOUT).with_suffix("").parts
    return room if room != "umarvel_hf" else rest[0]


def imported_modules(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in the file; one of its own folder with a leading dot."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "umarvel_hf":
            yield from (f"umarvel_hf.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def run_python(code: str, **kwargs: object) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_heavy():
    loaded = run_python("import sys, umarvel_hf; print(*{name.partition('.')[0] for name in sys.modules})")
    assert "umarvel_hf" in loaded.split()
    assert HEAVY.isdisjoint(loaded.split())


def test_help_loads_nothing_heavy():
    code = """
import sys
from umarvel_hf.cli import main
sys.argv = ["umarvel", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code
print("loaded:", *{name.partition(".")[0] for name in sys.modules})
"""
    text, _, loaded = run_python(code).partition("loaded:")
    assert "demo" in text and "search" in text
    assert HEAVY.isdisjoint(loaded.split())


def test_public_names_are_a_sorted_complete_list():
    names = umarvel_hf.__all__
    assert names == sorted(names)
    missing = [name for name in names if not hasattr(umarvel_hf, name)]  # loads each from where it lives
    assert missing == []
    public = {name for name in dir(umarvel_hf) if not name.startswith("_")}
    assert {name for name in public if not inspect.ismodule(getattr(umarvel_hf, name))} == set(names)


def test_examples_use_public_names_only():
    for path in sorted((CHECKOUT / "examples").glob("*.py")):
        ours = {name for name in imported_modules(path) if name.partition(".")[0] in ROOMS} - {"umarvel_hf"}
        assert ours <= {f"umarvel_hf.{name}" for name in umarvel_hf.__all__}, path.name


@pytest.mark.parametrize("path", library_files(), ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_imports_point_down(path):
    if path == CHECKOUT / "umarvel_hf/__init__.py":
        pytest.skip("the public face loads names from everywhere")
    depth = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    part = part_of(path)
    assert part in depth, f"{part} has no place in LAYERS"
    modules = list(imported_modules(path))
    ours = {name.split(".")[1] for name in modules if name.startswith("umarvel_hf.")} - {part}
    assert [name for name in sorted(ours) if depth.get(name, len(LAYERS)) >= depth[part]] == []
    relative = [name for name in modules if name.startswith(".")]
    if part == "modeling":
        assert not ours  # a checkpoint carries these files to where our package is not
        assert all(re.fullmatch(r"\.\w+", name) for name in relative)  # the Hub's loader copies siblings found this way
    else:
        assert relative == []


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in requirements}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def test_every_imported_package_is_declared(project):
    declared = requirement_names([*project["dependencies"], *chain(*project["optional-dependencies"].values())])
    distributions = packages_distributions()
    not_looked_for = sys.stdlib_module_names | {"", "umarvel_hf"}
    for path in library_files():
        for name in sorted({name.partition(".")[0] for name in imported_modules(path)} - not_looked_for):
            owners = requirement_names(distributions.get(name, [name]))
            assert owners & declared, f"{path.relative_to(CHECKOUT)} imports {name}, which pyproject.toml does not name"


def test_every_requirement_is_pinned(project):
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    pinned = requirement_names([line for line in lines if re.fullmatch(r"[\w.-]+==[\w.]+", line)])
    assert requirement_names(project["dependencies"] + project["optional-dependencies"]["test"]) <= pinned


@pytest.mark.parametrize("package", TEN_PACKAGES)
def test_each_of_the_ten_packages_is_used_and_tested(package, project):
    library_file, test = TEN_PACKAGES[package]
    assert package in {name.partition(".")[0] for name in imported_modules(CHECKOUT / library_file)}
    test_file, _, test_name = test.partition("::")
    defined = ast.parse((CHECKOUT / test_file).read_text(encoding="utf-8")).body
    assert test_name in {node.name for node in defined if isinstance(node, ast.FunctionDef)}
    assert requirement_names(packages_distributions()[package]) & requirement_names(project["dependencies"])


def test_the_readme_and_the_continuous_check_install_alike():
    readme = (CHECKOUT / "README.md").read_text()
    assert "pip install -c constraints.txt -e . && umarvel demo" in readme
    assert 'pip install -c constraints.txt -e ".[test]" && pytest -n 2' in readme
    assert 'pip install -c constraints.txt -e ".[test]"\n' in (CHECKOUT / ".ci/run").read_text()


def undocumented(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if ast.get_docstring(node) is None:
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node.body, f"{prefix}{node.name}.")


@pytest.mark.parametrize("path", library_files(), ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_every_public_name_has_a_docstring(path):
    assert list(undocumented(ast.parse(path.read_text(encoding="utf-8")).body)) == []


def tracked_files() -> list[Path]:
    """What a clone would hold once everything here is committed."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is no git checkout")
    return [path for path in map(Path, done.stdout.split("\0")[:-1]) if (CHECKOUT / path).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing left from an earlier build gets in; setuptools alone, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in tracked_files():
        if path.parts[0] in ROOMS or len(path.parts) == 1:
            target = folder / "clone" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / path, target)
    name = run_python("from setuptools.build_meta import build_wheel; build_wheel('..')", cwd=folder / "clone")
    assert name is not None
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_three_folders(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        Path(ROOMS[path.parts[0]], *path.parts[1:]).as_posix() for path in tracked_files() if path.parts[0] in ROOMS
    }
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"umarvel_hf/emoji/model/model.safetensors", "umarvel_hf/recipes/emoji.yaml"} <= expected
    assert any(name.startswith("umarvel_hf/emoji/") and name.endswith(".zip") for name in expected)
    assert any(name.startswith("umarvel_hf/modeling/") and name.endswith(".jinja") for name in expected)
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}


def test_the_wheel_works_apart_from_the_checkout(wheel, tmp_path):
    environment = ForeignEnvironment(tmp_path / "environment")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(environment.packages)
    code = """
import umarvel_hf, umarvel_hf.modeling.modeling_umarvel, umarvel_hf.trainer
from importlib.metadata import entry_points
assert callable(entry_points(group="console_scripts")["umarvel"].load())
print(umarvel_hf.__file__, umarvel_hf.modeling.__file__, umarvel_hf.trainer.__file__)
"""
    places = environment.run(code).split()
    assert all(Path(place).is_relative_to(environment.packages) for place in places)


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_in_an_empty_environment(wheel, tmp_path):
    venv.create(tmp_path / "environment", with_pip=True)
    scripts = tmp_path / "environment" / ("Scripts" if os.name == "nt" else "bin")
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for command in (["pip", "install", "-c", str(CHECKOUT / "constraints.txt"), str(wheel)], ["umarvel", "demo"]):
        subprocess.run(
            [str(scripts / command[0]), *command[1:]],
            cwd=tmp_path,
            env=outside | {"UMARVEL_CACHE": str(tmp_path / "cache")},
            stdin=subprocess.DEVNULL,
            check=True,
        )
    assert (tmp_path / "umarvel-demo/report.html").stat().st_size > 0
