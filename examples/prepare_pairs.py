"""Turn your own pairs of a text and a picture into a folder in M-BEIR's layout, which commands and examples work on.

    python examples/prepare_pairs.py pairs.csv FOLDER
    umarvel audit FOLDER
    umarvel evaluate MODEL --data FOLDER

The file has two columns: ``text``, and ``image``, a path relative to the file. Texts look for pictures (task 0) and
pictures for texts (task 3). A text that stands in several pairs has several right pictures, and a picture likewise.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

DATASET = "200"  # its number; an id is <number>:<count>
INSTRUCTIONS = f"""query_modality\tcand_modality\tname\tdataset_id\tprompt_1\tprompt_2
text\timage\tpairs\t{DATASET}\tFind an image that matches the given text.\tWhich picture shows what the text says?
image\ttext\tpairs\t{DATASET}\tFind a text that describes the given image.\tWhat can be seen in this picture?"""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("pairs", type=Path, help="CSV or JSON-lines file with the columns text and image")
parser.add_argument("out", type=Path, help="folder to write")
parser.add_argument("--held-out", type=float, default=0.1, help="share of texts and pictures for val, and for test")
parser.add_argument("--seed", type=int, default=0, help="of the split")
parser.add_argument("--link", action="store_true", help="link to the pictures instead of copying them")
arguments = parser.parse_args()
if (arguments.out / "query").exists():
    parser.error(f"{arguments.out} is prepared already; another split would mix what is learned and what is tested")
place = os.symlink if arguments.link else shutil.copyfile


def write(name: str, lines: list[str]) -> None:
    (arguments.out / name).parent.mkdir(parents=True, exist_ok=True)
    (arguments.out / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# 1. Read. Texts are the same but for case, spaces, quotes and full stop, pictures if their bytes are.
with arguments.pairs.open(newline="", encoding="utf-8-sig") as file:
    read = csv.DictReader(file) if arguments.pairs.suffix == ".csv" else map(json.loads, filter(str.strip, file))
    pairs = list(read)
ids: dict[str, str] = {}  # by content
items, answers = {}, {}  # text or picture, and what belongs to it, by id
(arguments.out / "mbeir_images").mkdir(parents=True, exist_ok=True)
for count, row in enumerate(pairs, start=1):
    text, path = " ".join(str(row.get("text") or "").split()), arguments.pairs.parent / str(row.get("image") or "")
    if not (words := text.strip(' ".').casefold()) or not path.is_file():
        parser.error(f"pair {count} of {arguments.pairs} has text {text!r} and image {str(path)!r}; it needs both")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    one, other = (ids.setdefault(content, f"{DATASET}:{len(ids)}") for content in (words, digest))
    items.setdefault(one, (text, None))
    _, picture = items.setdefault(other, (None, f"mbeir_images/{digest[:24]}{path.suffix}"))
    if not (arguments.out / picture).exists():
        place(path.resolve(), arguments.out / picture)
    answers.setdefault(one, {})[other] = answers.setdefault(other, {})[one] = None

# 2. Split. What hangs together by texts and pictures stays together, so that nothing of the test is seen in training.
seen: set[str] = set()
splits: dict[str, list[str]] = {"val": [], "test": [], "train": []}
for start in random.Random(arguments.seed).sample(list(items), len(items)):
    group = [] if start in seen else [start]
    seen.add(start)
    for one in group:  # which grows
        new = [other for other in answers[one] if other not in seen]
        group += new
        seen.update(new)
    fitting = [name for name in ("val", "test") if len(splits[name]) + len(group) <= arguments.held_out * len(items)]
    splits[fitting[0] if fitting else "train"] += group
if not all(splits.values()):
    parser.error("a split would be empty: change --held-out, or there are too few pairs, or too many hang together")

# 3. Write, for each split, what asks, what is searched, and what is right.
for split, own in splits.items():
    queries, pools, right = ({"text": [], "image": []} for _ in range(3))
    for one in own:
        text, picture = items[one]
        kind, task = ("image", 3) if picture else ("text", 0)
        query = {"qid": one, "query_txt": text, "query_img_path": picture, "query_modality": kind}
        query |= {"pos_cand_list": list(answers[one]), "neg_cand_list": [], "task_id": task}
        queries[kind].append(json.dumps(query))
        pools[kind].append(json.dumps({"did": one, "txt": text, "img_path": picture, "modality": kind}))
        right[kind] += [f"{one} 0 {did} 1 {task}" for did in answers[one]]
    print(f"{split}: {len(queries['text']):,} texts and {len(queries['image']):,} pictures")
    write(f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl", pools["image"] + pools["text"])
    if split == "train":
        write("query/union_train/mbeir_union_up_train.jsonl", queries["text"] + queries["image"])
        continue
    for name, asked, found in (("pairs_task0", "text", "image"), ("pairs_task3", "image", "text")):
        write(f"query/{split}/mbeir_{name}_{split}.jsonl", queries[asked])
        write(f"cand_pool/local/mbeir_{name}_{split}_cand_pool.jsonl", pools[found])
        write(f"qrels/{split}/mbeir_{name}_{split}_qrels.txt", right[asked])
write("instructions/query_instructions.tsv", [INSTRUCTIONS])
