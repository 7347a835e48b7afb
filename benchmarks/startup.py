"""How long a process takes until it can work: import, help, the first vector; beside Sentence Transformers.

    python benchmarks/startup.py

Every measurement is a process of its own, on the model that ships; subjects take turns.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence

from measure import interleaved, machine, table

from umarvel_hf.emoji import model_dir

TORCHVISION = "from umarvel_hf._torchvision import ensure_torchvision; ensure_torchvision()"
FIRST_VECTOR = {
    "umarvel_hf": "import umarvel_hf; umarvel_hf.encode({folder!r}, ['a red heart'])",
    "sentence-transformers": (
        f"{TORCHVISION}; from sentence_transformers import SentenceTransformer; "
        "SentenceTransformer({folder!r}, trust_remote_code=True).encode(['a red heart'])"
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, help="default: %(default)s")
    arguments = parser.parse_args()
    folder = str(model_dir())
    python = [sys.executable, "-c"]
    commands = {
        "python": [*python, "pass"],
        "import umarvel_hf": [*python, "import umarvel_hf"],
        "umarvel --help": [*python, "from umarvel_hf.cli import main; main(['--help'])"],
        "import sentence_transformers": [*python, f"{TORCHVISION}; import sentence_transformers"],
    } | {f"first vector, {name}": [*python, code.format(folder=folder)] for name, code in FIRST_VECTOR.items()}
    subjects = {name: lambda c=command: run(c) for name, command in commands.items()}
    seconds, _ = interleaved(subjects, arguments.repetitions)
    rows = [[name, f"{statistics.median(one):.2f}", f"{min(one):.2f}–{max(one):.2f}"] for name, one in seconds.items()]
    print(machine())
    print(table(["process", "seconds", "range"], rows))


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    main()
