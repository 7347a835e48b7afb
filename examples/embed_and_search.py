"""Search a folder of your own pictures and texts: by a text, by a picture, or by both.

    python examples/embed_and_search.py MODEL FOLDER --text "a dog on a bench"
    python examples/embed_and_search.py MODEL FOLDER --image bench.jpg --text "at night"

MODEL is a U-MARVEL checkpoint: a folder or a Hub id. The index is kept: run it again, and only files of new names are
encoded. For another model name another index; where files have changed or gone, remove it.
"""

import argparse
from pathlib import Path

from umarvel_hf import FlatIndex, encode, load, retrieve

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
TEXTS = (".md", ".txt")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="folder or Hub id of a checkpoint")
parser.add_argument("folder", type=Path, help="your pictures and texts; sub-folders are read, too")
parser.add_argument("--text", help="search by this text")
parser.add_argument("--image", type=Path, help="search by this picture; with --text, by both")
parser.add_argument("--instruction", help="what to look for, such as 'Find a text that describes the given image.'")
parser.add_argument("--index", type=Path, default=Path("index"), help="where the index is kept (default: %(default)s)")
parser.add_argument("-k", type=int, default=5, help="how many to show (default: %(default)s)")
arguments = parser.parse_args()
if arguments.text is None and arguments.image is None:
    parser.error("give --text, --image, or both")

# 1. Load. The model goes to the GPU where there is one.
model = load(arguments.model)

# 2. Data: every file is one item, a Path for a picture, a str for a text; its name is its id.
items: dict[str, str | Path] = {}
for path in sorted(arguments.folder.rglob("*")):
    if path.suffix.lower() in PICTURES:
        items[str(path.relative_to(arguments.folder))] = path
    elif path.suffix.lower() in TEXTS:
        items[str(path.relative_to(arguments.folder))] = path.read_text(encoding="utf-8")
if not items:
    parser.error(f"{arguments.folder} holds no pictures and no texts")

# 3. Encode and index what is new. Pictures and texts become vectors of one space, so one index holds both.
known = (arguments.index / "manifest.json").is_file()
index = FlatIndex.open(arguments.index) if known else FlatIndex(model.get_embedding_dimension())
new = sorted(items.keys() - set(index.ids))
index.add(new, encode(model, [items[name] for name in new], show_progress_bar=True))
index.save(arguments.index)
print(f"{len(index):,} items in {arguments.index}, {len(new):,} of them new")

# 4. Search. The instruction steers the query; candidates are encoded without one.
query = {"image": arguments.image, "text": arguments.text}  # None under a key is the same as no key
for rank, hit in enumerate(retrieve(model, index, query, instruction=arguments.instruction, k=arguments.k), start=1):
    print(f"{rank}. {hit.score:.3f}  {hit.id}")
