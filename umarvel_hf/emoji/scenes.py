"""Two or three sprites on one canvas: which scenes exist, how they are drawn and how they are put into words."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from umarvel_hf.emoji import phrases, png
from umarvel_hf.emoji.pack import SCENE_SPRITE_SIZE, Concept, Pack
from umarvel_hf.emoji.phrases import OPPOSITE, relation_words, with_article

CANVAS = 64
# Concepts stand on a ring. Pairs at most this far apart are kept for val and test; training never puts them together.
HELD_OUT_DISTANCE = 7
TEST_PAIRS, VAL_PAIRS, TEST_TRIPLES, VAL_TRIPLES = 160, 40, 40, 10
TRAIN_PAIRS, TRAIN_TRIPLES = 2080, 420


@dataclass(frozen=True)
class Scene:
    """``parts`` says what stands where, seen from ``anchor``: (("above", "cat"), ("left", "key")).

    Of two things the anchor is the right or the lower one, so that each arrangement is written in one way only.
    """

    anchor: str
    parts: tuple[tuple[str, str], ...]

    @property
    def objects(self) -> tuple[str, ...]:
        """Everything in it, the anchor first."""
        return (self.anchor, *(thing for _, thing in self.parts))

    @property
    def about(self) -> str:
        """In plain words: what stands where of the anchor."""
        return "; ".join(f"{thing} {relation} {self.anchor}" for relation, thing in self.parts)


# Which scenes there are


def ring(concepts: tuple[Concept, ...]) -> list[str]:
    """Labels of the concepts that scenes are made of, in an order that is drawn once."""
    labels = [concept.label for concept in concepts if concept.scene]
    random.Random("ring").shuffle(labels)
    return labels


def pair_group(one: str, other: str) -> list[Scene]:
    """The four arrangements of two things, each the near-miss of the other three."""
    return [Scene(y, ((relation, x),)) for x, y in ((one, other), (other, one)) for relation in ("left", "above")]


def triple_group(things: tuple[str, str, str], rng: random.Random) -> list[Scene]:
    """An arrangement of three things and its neighbours: roles exchanged, or one thing moved to the other side."""
    anchor, x, z = rng.sample(things, 3)
    vertical, horizontal = rng.choice(("above", "below")), rng.choice(("left", "right"))
    placed = [
        ((vertical, x), (horizontal, z)),
        ((vertical, z), (horizontal, x)),
        ((OPPOSITE[vertical], x), (horizontal, z)),
        ((vertical, x), (OPPOSITE[horizontal], z)),
    ]
    return [Scene(anchor, parts) for parts in placed]


def held_out_groups(labels: list[str]) -> dict[str, list[list[Scene]]]:
    """Groups of near-misses for val and test.

    Distances on the ring are 1 and 2 for pairs of test, 5 for those of val, and 3, 4 and 7 within triples.
    """
    size = len(labels)
    near = [(at, at + 1) for at in range(size)] + [(at, at + 2) for at in range(size)]
    far = [(at, at + 5) for at in range(size)]
    groups = {
        split: [pair_group(labels[a % size], labels[b % size]) for a, b in pairs]
        for split, pairs in (("test", near[:TEST_PAIRS]), ("val", far[:VAL_PAIRS]))
    }
    for split, start, count in (("test", 0, TEST_TRIPLES), ("val", TEST_TRIPLES, VAL_TRIPLES)):
        for at in range(start, start + count):
            things = (labels[at % size], labels[(at + 3) % size], labels[(at + 7) % size])
            groups[split].append(triple_group(things, random.Random(f"triple-{at}")))
    return groups


def train_groups(labels: list[str]) -> list[list[Scene]]:
    """Groups of near-misses for training: pairs and triples of things that are all far apart on the ring."""
    rng, place = random.Random("train scenes"), {label: at for at, label in enumerate(labels)}

    def apart(one: str, other: str) -> bool:
        distance = abs(place[one] - place[other])
        return min(distance, len(labels) - distance) > HELD_OUT_DISTANCE

    pairs = [pair for pair in combinations(labels, 2) if apart(*pair)]
    groups = [pair_group(*pair) for pair in rng.sample(pairs, TRAIN_PAIRS)]
    triples: dict[tuple[str, str, str], None] = {}
    while len(triples) < TRAIN_TRIPLES:
        a, b, c = sorted(rng.sample(labels, 3))
        if apart(a, b) and apart(b, c) and apart(a, c):
            triples[a, b, c] = None
    return groups + [triple_group(triple, rng) for triple in triples]


# How a scene is drawn


def draw(scene: Scene, style: str, pack: Pack, hexes: dict[str, str], rng: random.Random) -> bytes:
    """A PNG of the scene, 64 by 64, in one drawing style; ``rng`` moves the sprites a little."""
    canvas = np.zeros((CANVAS, CANVAS), dtype=np.uint8)  # colour 0: white
    palette = b"\xff\xff\xff"
    for thing, (left, top) in places(scene, rng).items():
        sprite = pack.sprite(style, hexes[thing], SCENE_SPRITE_SIZE)
        pixels = np.frombuffer(sprite.pixels, dtype=np.uint8).reshape(sprite.size, sprite.size)
        canvas[top : top + sprite.size, left : left + sprite.size] = pixels + len(palette) // 3
        palette += sprite.palette
    return png.encode(canvas.tobytes(), CANVAS, palette)


def places(scene: Scene, rng: random.Random) -> dict[str, tuple[int, int]]:
    """Left and top of every sprite. Two share a row or column anywhere; three fill cells of a two by two grid."""

    def beside(cell: int) -> int:
        return rng.randint(0, 2) if cell == 0 else rng.randint(32, 34)

    if len(scene.parts) == 1:
        relation, thing = scene.parts[0]
        middle = rng.randint(3, 31)
        first, second = ((beside(cell), middle + rng.randint(-3, 3)) for cell in (0, 1))
        across = relation == "left"
        return {thing: first if across else first[::-1], scene.anchor: second if across else second[::-1]}
    relations = [relation for relation, _ in scene.parts]
    column, row = int("left" in relations), int("above" in relations)
    found = {scene.anchor: (beside(column), beside(row))}
    for relation, thing in scene.parts:
        sideways = relation in ("left", "right")
        found[thing] = (beside(1 - column if sideways else column), beside(row if sideways else 1 - row))
    return found


# How a scene is put into words


def canonical_caption(scene: Scene) -> str:
    """The one caption by which the scene stands in pools. It starts with either thing, by chance."""
    return caption(scene, random.Random(f"canonical-{scene.about}"), plain=True)


def caption(scene: Scene, rng: random.Random, *, plain: bool = False) -> str:
    """A caption in one of many wordings, or (``plain``) of the first wording of each kind."""
    if len(scene.parts) == 1:
        relation, thing = scene.parts[0]
        either_way = [(thing, relation, scene.anchor), (scene.anchor, OPPOSITE[relation], thing)]
        return pair_caption(*rng.choice(either_way), rng, plain)
    (relation_x, x), (relation_z, z) = scene.parts
    template = rng.choice(phrases.TRIPLE_CAPTIONS[: 2 if plain else None])
    words = plain_relation if plain else relation_words
    return template.format(
        y=scene.anchor, ax=with_article(x), ay=with_article(scene.anchor), az=with_article(z),
        relation_x=words(relation_x, rng), relation_z=words(relation_z, rng),
        x_to_it=rng.choice(phrases.RELATION_TO_IT[relation_x]), z_to_it=rng.choice(phrases.RELATION_TO_IT[relation_z]),
    )  # fmt: skip


def pair_caption(x: str, relation: str, y: str, rng: random.Random, plain: bool) -> str:
    """A caption of two things; ``plain`` takes the first wording always."""
    template = phrases.PAIR_CAPTIONS[0] if plain else rng.choice(phrases.PAIR_CAPTIONS)
    return template.format(
        ax=with_article(x), ay=with_article(y),
        relation=plain_relation(relation, rng) if plain else relation_words(relation, rng),
        to_it=rng.choice(phrases.RELATION_TO_IT[relation]),
        side=phrases.SIDES[relation], other_side=phrases.SIDES[OPPOSITE[relation]],
    )  # fmt: skip


def plain_relation(relation: str, _: random.Random | None = None) -> str:
    """The first of the ways to say where a thing is."""
    return phrases.RELATION_WORDS[relation][0]


def thing_lists(group: list[Scene], rng: random.Random) -> list[str]:
    """A list of what is there for each scene of a group: different strings that do not tell the scenes apart."""
    things = sorted(group[0].objects)
    lists = [", ".join(things), ", ".join(reversed(things))]
    lists += [" and ".join(map(with_article, order)) for order in (things, things[::-1])]
    return rng.sample(lists, len(group))


def question(scene: Scene, asked: int, mirrored: bool, rng: random.Random) -> tuple[str, str]:
    """A question about one part of the scene (``mirrored``: about the anchor, seen from the part), and its answer."""
    relation, x = scene.parts[asked]
    y = scene.anchor
    if mirrored:
        relation, x, y = OPPOSITE[relation], y, x
    text = rng.choice(phrases.QUESTIONS).format(relation=relation_words(relation, rng), y=y)
    return text, f"the {x}, {plain_relation(relation)} the {y}"


# How one scene becomes another


def edit(source: Scene, target: Scene, rng: random.Random) -> str | None:
    """The swap, move or replacement that turns ``source`` into ``target``, in words; None if one is not enough."""
    if len(source.parts) != len(target.parts):
        return None
    if set(source.objects) != set(target.objects):
        return replacement(source, target, rng)
    if len(source.parts) == 1:
        (relation, x), y = target.parts[0], target.anchor
        if source == Scene(x, ((relation, y),)) and rng.random() < 0.6:
            return "swap them" if rng.random() < 0.4 else swap(x, y, rng)
        return move(*rng.choice([(x, relation, y), (y, OPPOSITE[relation], x)]), rng)
    changed = [at for at in range(2) if source.parts[at] != target.parts[at]]
    if source.anchor != target.anchor or not changed:
        return None
    if len(changed) == 1:
        (relation, x) = target.parts[changed[0]]
        return move(x, relation, target.anchor, rng) if x == source.parts[changed[0]][1] else None
    exchanged = [(source.parts[0][0], source.parts[1][1]), (source.parts[1][0], source.parts[0][1])]
    return swap(source.parts[0][1], source.parts[1][1], rng) if list(target.parts) == exchanged else None


def swap(x: str, y: str, rng: random.Random) -> str:
    """How to ask that two things change places."""
    x, y = rng.choice([(x, y), (y, x)])
    return rng.choice(phrases.SWAPS).format(x=x, y=y)


def move(x: str, relation: str, y: str, rng: random.Random) -> str:
    """How to ask that a thing moves."""
    return rng.choice(phrases.MOVES).format(x=x, relation=relation_words(relation, rng), y=y)


def replacement(source: Scene, target: Scene, rng: random.Random) -> str | None:
    """How to ask for one thing in place of another; None where the scenes differ in more."""
    if [relation for relation, _ in source.parts] != [relation for relation, _ in target.parts]:
        return None
    changed = [(old, new) for old, new in zip(source.objects, target.objects, strict=True) if old != new]
    if len(changed) != 1:
        return None
    return rng.choice(phrases.REPLACEMENTS).format(old=changed[0][0], new=with_article(changed[0][1]))
