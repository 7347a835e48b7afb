"""Draw the picture of a search that the README shows: what the shipped model finds among the embedded pictures.

    python docs/draw_search.py

One query of each of three tasks, the first of its test split, not chosen; the right answers are framed.
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from umarvel_hf import MBeir, Task, load, retrieve
from umarvel_hf.emoji import benchmark_dir, model_dir
from umarvel_hf.searching import embedded_index

TASKS = (Task("scenes", 0), Task("scenes", 7), Task("emojiseen", 4))
HITS, SIDE, GAP, LEFT, ROW = 4, 112, 16, 330, 150
PAPER, INK, SOFT, RIGHT = "#ffffff", "#1c1d1f", "#62666d", "#0072b2"
OUT = Path(__file__).parent / "drawings/search.png"

benchmark, model = MBeir(benchmark_dir()), load(model_dir(), device="cpu")
index, pictures = embedded_index(model, benchmark)
canvas = Image.new("RGB", (LEFT + HITS * (SIDE + GAP) + GAP, len(TASKS) * ROW + GAP), PAPER)
draw, font, small = ImageDraw.Draw(canvas), ImageFont.load_default(16), ImageFont.load_default(13)


def paste(path: Path, left: int, top: int, side: int) -> None:
    picture = Image.open(path).convert("RGBA").resize((side, side), Image.Resampling.NEAREST)
    canvas.paste(picture, (left, top), picture)


for row, task in enumerate(TASKS):
    query, top = benchmark.queries(task, "test")[0], GAP + row * ROW
    instruction = benchmark.prompts(query, "image")[0]
    draw.text((GAP, top), task.type.replace(" → ", " to "), SOFT, small)
    words, line, at = query.text.split(), "", top + 22
    for word in [*words, ""]:  # in lines of some thirty letters
        if not word or len(line) + len(word) > 32:
            draw.text((GAP, at), line.strip(), INK, font)
            line, at = "", at + 21
        line += f"{word} "
    if query.image is not None:
        paste(query.image, GAP, at if query.text else top + 22, SIDE - 40)
    hits = retrieve(model, index, query.item, instruction=instruction, k=HITS)
    for column, hit in enumerate(hits):
        left = LEFT + column * (SIDE + GAP)
        paste(pictures[hit.id], left, top, SIDE)
        if hit.id in query.positives:
            draw.rectangle((left - 5, top - 5, left + SIDE + 4, top + SIDE + 4), outline=RIGHT, width=3)
        draw.text((left + SIDE // 2, top + SIDE + 8), f"{hit.score:.3f}", SOFT, small, anchor="ma")
canvas.quantize(128).save(OUT, optimize=True)
