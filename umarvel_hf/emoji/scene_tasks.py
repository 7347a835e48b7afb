"""The eight tasks over scenes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from umarvel_hf.emoji import scenes
from umarvel_hf.emoji.dataset import Dataset
from umarvel_hf.emoji.pack import TRAINED_STYLES, Pack, concepts
from umarvel_hf.emoji.scenes import Scene

NAME, ID = "scenes", 102
QUERIES = {"val": 60, "test": 300}
# Share of the training scenes that ask a query of each task.
TRAIN_SHARES = {0: 1.0, 1: 0.5, 2: 0.35, 3: 0.8, 4: 1.0, 6: 0.5, 7: 0.75, 8: 0.4}
SECOND_DRAWINGS = 0.25  # share of the training scenes that are drawn in two styles

Save = Callable[[str, bytes], None]


@dataclass
class Drawn:
    """A scene with the drawings that are candidates (``shown``) and those that queries use (``asked``).

    In val and test these are different ones; in training both are the same one or two.
    """

    scene: Scene
    shown: list[str]
    asked: list[str]
    list_text: str | None  # the text of the pair candidate; None: the caption
    answered: tuple[int, bool]  # which part is asked for, and whether seen from the part
    group: int
    dids: dict[str, list[str]] = field(default_factory=dict)


def build(pack: Pack, save: Save) -> Dataset:
    """Draw all scenes through ``save(path, png)`` and return their queries and candidates."""
    dataset, labels = Dataset(NAME, ID), scenes.ring(concepts())
    hexes = {concept.label: concept.hex for concept in concepts()}
    held_out = scenes.held_out_groups(labels)
    for split, groups in {"train": scenes.train_groups(labels), **held_out}.items():
        drawn = list(draw_groups(split, groups, pack, hexes, save))
        for item in drawn:
            add_candidates(dataset, split, item)
        add_queries(dataset, split, drawn)
    return dataset


def draw_groups(
    split: str, groups: list[list[Scene]], pack: Pack, hexes: dict[str, str], save: Save
) -> Iterator[Drawn]:
    """Draw the scenes of all groups, near-misses together, and save their pictures."""
    for number, group in enumerate(groups):
        rng = random.Random(f"draw-{split}-{number}")
        lists = scenes.thing_lists(group, rng) if rng.random() < 0.5 else [None] * len(group)
        for at, scene in enumerate(group):
            styles = rng.sample(TRAINED_STYLES, 2)
            count = 2 if split != "train" or rng.random() < SECOND_DRAWINGS else 1
            paths = [f"mbeir_images/scenes/{split}/{number:04d}_{at}_{style}.png" for style in styles[:count]]
            for path, style in zip(paths, styles, strict=False):
                save(path, scenes.draw(scene, style, pack, hexes, rng))
            shown, asked = (paths, paths) if split == "train" else (paths[:1], paths[1:])
            yield Drawn(scene, shown, asked, lists[at], question_of(split, at, scene, rng), number)


def question_of(split: str, at: int, scene: Scene, rng: random.Random) -> tuple[int, bool]:
    """Which part is asked for, and whether it is seen from the part.

    In val and test a triple is asked for what sets it apart from the others of its group, so no two answers are equal.
    """
    if len(scene.parts) == 1:
        return 0, rng.random() < 0.5
    return (int(at == 3), False) if split != "train" else (rng.randrange(2), rng.random() < 0.5)


def add_candidates(dataset: Dataset, split: str, item: Drawn) -> None:
    """Val and test share their pools, one for each task; training has one pool for all."""

    def add(kind: str, tasks: tuple[int, ...], txt: str | None, img_path: str | None = None) -> None:
        for pool in ("train",) if split == "train" else tasks:
            did = dataset.add_candidate(pool, item.scene.about, txt, img_path)
        item.dids.setdefault(kind, []).append(did)

    caption = scenes.canonical_caption(item.scene)
    for path in item.shown:
        add("image", (0, 4, 7), None, path)
    add("caption", (1, 3), caption)
    for path in item.shown[:1]:
        add("pair", (2, 8), item.list_text or caption, path)
    add("answer", (6,), scenes.question(item.scene, *item.answered, random.Random(0))[1])


def add_queries(dataset: Dataset, split: str, drawn: list[Drawn]) -> None:
    """Add the queries of a split, of every task as many as its share says."""
    ask = {0: ask_image, 1: ask_paraphrase, 2: ask_pair, 3: ask_caption, 4: ask_other_style, 6: ask_question}
    sources = Sources(drawn)
    for task, share in TRAIN_SHARES.items():
        rng = random.Random(f"queries-{split}-{task}")
        count = round(share * len(drawn)) if split == "train" else min(QUERIES[split], len(drawn))
        for item in rng.sample(drawn, count):
            if task in ask:
                ask[task](dataset, split, item, rng)
            else:
                ask_edit(dataset, split, task, item, sources, rng)


def wording(item: Drawn, rng: random.Random) -> str:
    """Any caption of the scene but the one that stands in the pools."""
    canonical = scenes.canonical_caption(item.scene)
    while (text := scenes.caption(item.scene, rng)) == canonical:
        pass
    return text


def ask_image(dataset: Dataset, split: str, item: Drawn, rng: random.Random) -> None:
    """Task 0: a caption asks for its scene."""
    dataset.add_query(split, 0, item.dids["image"], txt=scenes.caption(item.scene, rng))


def ask_paraphrase(dataset: Dataset, split: str, item: Drawn, rng: random.Random) -> None:
    """Task 1: a wording asks for the caption."""
    dataset.add_query(split, 1, item.dids["caption"], txt=wording(item, rng))


def ask_pair(dataset: Dataset, split: str, item: Drawn, rng: random.Random) -> None:
    """Task 2: a wording asks for the scene with a text."""
    dataset.add_query(split, 2, item.dids["pair"], txt=wording(item, rng))


def ask_caption(dataset: Dataset, split: str, item: Drawn, rng: random.Random) -> None:
    """Task 3: a picture asks for its caption."""
    dataset.add_query(split, 3, item.dids["caption"], img_path=rng.choice(item.asked))


def ask_other_style(dataset: Dataset, split: str, item: Drawn, rng: random.Random) -> None:
    """Task 4: a picture asks for the same scene in another style, where there is one."""
    path = rng.choice(item.asked)
    others = [did for did, shown in zip(item.dids["image"], item.shown, strict=True) if shown != path]
    if others:
        dataset.add_query(split, 4, others, img_path=path)


def ask_question(dataset: Dataset, split: str, item: Drawn, rng: random.Random) -> None:
    """Task 6: a question about a picture asks for its answer."""
    text, _ = scenes.question(item.scene, *item.answered, rng)
    dataset.add_query(split, 6, item.dids["answer"], txt=text, img_path=rng.choice(item.asked))


class Sources:
    """Finds scenes that one edit turns into a given scene."""

    def __init__(self, drawn: list[Drawn]) -> None:
        self._groups: dict[int, list[Drawn]] = {}
        self._pairs: dict[tuple[str, str, str], list[Drawn]] = {}  # by relation, the thing kept and its place
        for item in drawn:
            self._groups.setdefault(item.group, []).append(item)
            for key in self._keys(item.scene):
                self._pairs.setdefault(key, []).append(item)

    @staticmethod
    def _keys(scene: Scene) -> list[tuple[str, str, str]]:
        (relation, x), *more = scene.parts
        return [] if more else [(relation, x, "part"), (relation, scene.anchor, "anchor")]

    def rearranged(self, item: Drawn) -> list[Drawn]:
        """Scenes of the same things: the target is a swap or a move away, if one edit is enough."""
        return [other for other in self._groups[item.group] if other is not item]

    def replaced(self, item: Drawn) -> list[Drawn]:
        """Scenes of two things of which one is another."""
        return [other for key in self._keys(item.scene) for other in self._pairs[key] if other.group != item.group]


def ask_edit(dataset: Dataset, split: str, task: int, item: Drawn, sources: Sources, rng: random.Random) -> None:
    """Ask for ``item`` as the result of an edit of another scene."""
    choices = sources.replaced(item) if rng.random() < 0.35 else []
    choices = choices or sources.rearranged(item)
    for source in rng.sample(choices, len(choices)):
        if text := scenes.edit(source.scene, item.scene, rng):
            right = item.dids["image" if task == 7 else "pair"]
            dataset.add_query(split, task, right, txt=text, img_path=rng.choice(source.asked))
            return
    raise AssertionError(f"no edit leads to {item.scene}")
