"""The eight tasks over single emoji: seen concepts in a style never trained on (S), and unseen concepts (U)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from umarvel_hf.emoji import phrases
from umarvel_hf.emoji.dataset import TASKS, Dataset
from umarvel_hf.emoji.pack import HELD_OUT_STYLE, TRAINED_STYLES, Concept, Pack, concepts
from umarvel_hf.emoji.png import encode

SEEN, UNSEEN = ("emojiseen", 100), ("emojiunseen", 101)
UNSEEN_SHARE = {"thing": 0.25, "hand": 0.3, "person": 0.3}  # of the families of each kind
QUERIES = {"val": 60, "test": 300}
VAL_SHARE = 0.23  # of the unseen families
KEYWORDS = 3  # in a query made of keywords

Save = Callable[[str, bytes], None]


def split_families() -> tuple[list[str], list[str]]:
    """Seen and unseen families. Whatever appears in scenes is seen."""
    drawn = [concept for concept in concepts() if concept.styles]
    in_scenes = {concept.family for concept in drawn if concept.scene}
    unseen: list[str] = []
    for kind, share in UNSEEN_SHARE.items():
        families = list(dict.fromkeys(concept.family for concept in drawn if concept.kind == kind))
        free = [family for family in families if family not in in_scenes]
        unseen += random.Random(f"unseen-{kind}").sample(free, round(share * len(families)))
    return [family for family in dict.fromkeys(concept.family for concept in drawn) if family not in unseen], unseen


def save_images(pack: Pack, save: Save) -> None:
    """Save the picture of every concept in every style."""
    for concept in concepts():
        for style in concept.styles:
            sprite = pack.sprite(style, concept.hex)
            save(image_path(style, concept), encode(sprite.pixels, sprite.size, sprite.palette))


def image_path(style: str, concept: Concept) -> str:
    """Where a concept's picture lies, from the root of the benchmark."""
    return f"mbeir_images/emoji/{style}/{concept.hex}.png"


# Texts


class Keywords:
    """Keyword lists that fit one concept only, judged against every emoji of the pack.

    Hands and people have none: what fits one fits it in every skin tone.
    """

    def __init__(self) -> None:
        self._owners: dict[str, set[str]] = {}
        for concept in concepts():
            for word in concept.keywords:
                self._owners.setdefault(word, set()).add(concept.hex)

    def query(self, concept: Concept, rng: random.Random, avoid: Sequence[str] = ()) -> str | None:
        """Some keywords in some order, other than the lists to ``avoid``; None if none fits this concept only."""
        avoided = [frozenset(text.split(", ")) for text in avoid]
        for _ in range(20 if concept.kind == "thing" and concept.keywords else 0):
            words = rng.sample(concept.keywords, min(KEYWORDS, len(concept.keywords)))
            owners = set.intersection(*(self._owners[word] for word in words))
            if owners == {concept.hex} and frozenset(words) not in avoided:
                return ", ".join(words)
        return None

    def held_out(self, concept: Concept) -> list[str]:
        """Up to two lists that only the tests use."""
        rng, texts = random.Random(f"held-out-{concept.hex}"), list[str]()
        for _ in range(2):
            texts += filter(None, [self.query(concept, rng, texts)])
        return texts


def descriptions(concept: Concept, keywords: Keywords, rng: random.Random) -> list[str]:
    """Texts to train on that mean the concept without being its label."""
    held_out = keywords.held_out(concept)
    texts = [concept.gloss, *(keywords.query(concept, rng, held_out) for _ in range(3))]
    return list(dict.fromkeys(text for text in texts if text))


def edits(family: list[Concept]) -> Iterator[tuple[Concept, Concept, str]]:
    """Source, target and what differs, for all pairs of a family that differ in tone or gender only."""
    for source, target in product(family, family):
        if (source.gender == target.gender) != (source.tone == target.tone):
            yield source, target, "tone" if source.gender == target.gender else "gender"


def by_family(members: list[Concept]) -> dict[str, list[Concept]]:
    """Families that come in tones."""
    families: dict[str, list[Concept]] = {}
    for concept in members:
        if concept.kind != "thing":
            families.setdefault(concept.family, []).append(concept)
    return families


# What candidates there are


class Shelf:
    """Candidates of one dataset by concept. ``styles_of`` says in which styles a concept's pictures are candidates."""

    def __init__(self, dataset: Dataset, styles_of: Callable[[Concept], list[str]], train: bool) -> None:
        self.dataset, self.styles_of, self._train = dataset, styles_of, train

    def _add(self, tasks: tuple[int, ...], concept: Concept, txt: str | None, img_path: str | None = None) -> str:
        for pool in ("train",) if self._train else tasks:
            did = self.dataset.add_candidate(pool, concept.hex, txt, img_path)
        return did

    def images(self, concept: Concept, but: str | None = None) -> list[str]:
        """Dids of the pictures of a concept in every style, but for that at one path."""
        paths = [image_path(style, concept) for style in self.styles_of(concept)]
        return [self._add((0, 4, 7), concept, None, path) for path in paths if path != but]

    def pairs(self, concept: Concept, but: str | None = None) -> list[str]:
        """Dids of the pictures with the concept's name, likewise."""
        paths = [image_path(style, concept) for style in self.styles_of(concept)]
        return [self._add((2, 8), concept, concept.label, path) for path in paths if path != but]

    def label(self, concept: Concept) -> list[str]:
        """The did of the concept's name, in a list."""
        return [self._add((1, 3, 6), concept, concept.label)]

    def fill(self, concept: Concept) -> None:
        """Put all candidates of a concept in the pools."""
        self.images(concept)
        self.pairs(concept)
        self.label(concept)


# Training


def add_train(dataset: Dataset, seen: list[Concept]) -> None:
    """Queries of all tasks over the seen concepts in the trained styles; candidates are those that answer them."""
    keywords = Keywords()
    shelf = Shelf(dataset, trained_styles, train=True)
    for concept in seen:
        add_train_concept(shelf, concept, keywords, random.Random(f"train-{concept.hex}"))
    for name, family in by_family(seen).items():
        rng = random.Random(f"train-{name}")
        for source, target, changed in edits(family):
            right = {6: shelf.label(target), 7: shelf.images(target), 8: shelf.pairs(target)}
            for style, task in product(trained_styles(source), right):
                text = edit_text(task, target, changed, rng)
                path = image_path(style, source)
                dataset.add_query("train", task, right[task], txt=text, img_path=path)


def trained_styles(concept: Concept) -> list[str]:
    """The styles of a concept that training shows."""
    return [style for style in concept.styles if style in TRAINED_STYLES]


def add_train_concept(shelf: Shelf, concept: Concept, keywords: Keywords, rng: random.Random) -> None:
    """Add the training queries of a concept, of all tasks."""
    add = shelf.dataset.add_query
    texts = descriptions(concept, keywords, rng)
    for text in texts:
        add("train", 1, shelf.label(concept), txt=text)
    labels = list(dict.fromkeys(rng.choice(phrases.LABEL_QUERIES).format(concept.label) for _ in range(4)))
    for text in labels + texts[:3]:
        add("train", 0, shelf.images(concept), txt=text)
    for text in labels[:2] + texts[:2]:
        add("train", 2, shelf.pairs(concept), txt=text)
    for style in trained_styles(concept):
        path = image_path(style, concept)
        add("train", 3, shelf.label(concept), img_path=path)
        add("train", 4, shelf.images(concept, but=path), img_path=path)


def edit_text(task: int, target: Concept, changed: str, rng: random.Random) -> str:
    """How to ask for the name (6) or a picture (7, 8) of ``target``."""
    words = phrases.edit(target.tone, target.gender, changed, rng)
    return rng.choice(phrases.NAME_QUESTIONS if task == 6 else phrases.CHANGES).format(words)


# Tests


@dataclass(frozen=True)
class Exam:
    """How a test set asks: the style a concept is shown in, that of task 4, and the concepts that edits start from."""

    style: Callable[[Concept], str]
    other_style: Callable[[Concept], str]
    sources: frozenset[str]


@dataclass(frozen=True)
class Question:
    """A possible query."""

    family: str
    right: list[str]
    txt: str | None = None
    img_path: str | None = None


def add_seen(dataset: Dataset, seen: list[Concept]) -> None:
    """S: two members of each family with tones are only ever asked with; pictures of all others stand in the pools."""
    sources = frozenset(
        concept.hex
        for name, family in by_family(seen).items()
        for concept in random.Random(f"sources-{name}").sample(family, 2)
    )
    shelf = Shelf(dataset, lambda concept: [] if concept.hex in sources else [HELD_OUT_STYLE], train=False)
    for concept in seen:
        shelf.fill(concept)
    exam = Exam(
        style=lambda concept: HELD_OUT_STYLE,
        other_style=lambda concept: random.Random(f"other-{concept.hex}").choice(trained_styles(concept)),
        sources=sources,
    )
    for task in TASKS:
        rng = random.Random(f"seen-{task}")
        questions = list(ask(task, seen, shelf, exam, rng))
        chosen = rng.sample(questions, min(len(questions), sum(QUERIES.values())))
        add_questions(dataset, "val", task, chosen[: QUERIES["val"]])
        add_questions(dataset, "test", task, chosen[QUERIES["val"] :])


def add_unseen(dataset: Dataset, unseen: list[Concept], families: list[str]) -> None:
    """U: each concept is asked with in one trained style, and its other drawings stand in the pools.

    Names of emoji that the pack has no pictures of fill the text pools. Val and test ask for different families.
    """
    asked = {concept.hex: random.Random(f"asked-{concept.hex}").choice(trained_styles(concept)) for concept in unseen}
    shelf = Shelf(dataset, lambda concept: [s for s in trained_styles(concept) if s != asked[concept.hex]], train=False)
    for concept in unseen:
        shelf.fill(concept)
    for concept in concepts():
        if not concept.styles:
            shelf.label(concept)
    exam = Exam(lambda concept: asked[concept.hex], lambda concept: asked[concept.hex], frozenset(asked))
    val = set(random.Random("val families").sample(families, round(VAL_SHARE * len(families))))
    for task in TASKS:
        rng = random.Random(f"unseen-{task}")
        questions = list(ask(task, unseen, shelf, exam, rng))
        for split, count in QUERIES.items():
            mine = [question for question in questions if (question.family in val) == (split == "val")]
            add_questions(dataset, split, task, rng.sample(mine, min(count, len(mine))))


def add_questions(dataset: Dataset, split: str, task: int, questions: list[Question]) -> None:
    """Add queries of a split and task."""
    for question in questions:
        dataset.add_query(split, task, question.right, question.txt, question.img_path)


def ask(task: int, members: list[Concept], shelf: Shelf, exam: Exam, rng: random.Random) -> Iterator[Question]:
    """Every question of a task that the exam can ask."""
    right = {0: shelf.images, 1: shelf.label, 2: shelf.pairs, 3: shelf.label, 4: shelf.images}
    right |= {6: shelf.label, 7: shelf.images, 8: shelf.pairs}
    if task in (6, 7, 8):
        for family in by_family(members).values():
            for source, target, changed in edits(family):
                if source.hex in exam.sources and (dids := right[task](target)):
                    text = edit_text(task, target, changed, rng)
                    yield Question(target.family, dids, text, image_path(exam.style(source), source))
        return
    keywords = Keywords()
    for concept in members:
        if dids := right[task](concept):
            yield from ask_concept(task, concept, dids, exam, keywords, rng)


def ask_concept(
    task: int, concept: Concept, right: list[str], exam: Exam, keywords: Keywords, rng: random.Random
) -> Iterator[Question]:
    """The questions of a task about one concept, answered by the dids in ``right``."""
    if task in (3, 4):
        style = exam.style(concept) if task == 3 else exam.other_style(concept)
        yield Question(concept.family, right, img_path=image_path(style, concept))
        return
    texts = [concept.gloss, *keywords.held_out(concept)]
    if task != 1:
        texts.append(rng.choice(phrases.LABEL_QUERIES).format(concept.label))
    for text in texts:
        if text:
            yield Question(concept.family, right, txt=text)


def build(pack: Pack, save: Save) -> list[Dataset]:
    """Save all pictures through ``save(path, png)`` and return both datasets."""
    save_images(pack, save)
    seen_families, unseen_families = split_families()
    drawn = [concept for concept in concepts() if concept.styles]
    seen = [concept for concept in drawn if concept.family in set(seen_families)]
    unseen = [concept for concept in drawn if concept.family in set(unseen_families)]
    datasets = [Dataset(*SEEN), Dataset(*UNSEEN)]
    add_train(datasets[0], seen)
    add_seen(datasets[0], seen)
    add_unseen(datasets[1], unseen, unseen_families)
    return datasets
