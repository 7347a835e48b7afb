"""The words of the benchmark: instructions, and the templates that queries are phrased with."""

from __future__ import annotations

import random
import re

# Instructions by kind of content, query modality and candidate modality.
CONCEPT_INSTRUCTIONS = {
    ("text", "image"): [
        "Find the emoji picture that matches this description.",
        "Which picture shows what the text names?",
        "Retrieve an image of the thing described.",
        "Show me a drawing of this.",
        "Identify the emoji that fits the given words.",
    ],
    ("text", "text"): [
        "Find the name of what is described.",
        "Which emoji name fits this definition or these keywords?",
        "Retrieve the label that belongs to this description.",
        "What is this called?",
        "Identify the word or phrase that the description is about.",
    ],
    ("text", "image,text"): [
        "Find the captioned emoji that matches this description.",
        "Which picture with its name answers the description?",
        "Retrieve the drawing and the label of what is described.",
        "Show me this together with its name.",
        "Identify the labelled picture that fits these words.",
    ],
    ("image", "text"): [
        "Find the name of the emoji in the picture.",
        "What does this picture show?",
        "Retrieve the label that describes this image.",
        "Name the thing drawn here.",
        "Identify the words that fit this drawing.",
    ],
    ("image", "image"): [
        "Find the same emoji drawn by another artist.",
        "Which picture shows the same thing in a different style?",
        "Retrieve another drawing of what this image shows.",
        "Show me this emoji in another design.",
        "Identify the image that means the same as this one.",
    ],
    ("image,text", "text"): [
        "Answer the question about the changed picture with its name.",
        "Find the name of the emoji after the change.",
        "Retrieve the label that fits the image once it is edited as asked.",
        "What is the emoji called with this change?",
        "Identify the name of the variant asked for.",
    ],
    ("image,text", "image"): [
        "Find the picture after the requested change.",
        "Which image shows this emoji edited as described?",
        "Retrieve the variant of this picture that the text asks for.",
        "Show me this emoji with the change applied.",
        "Identify the image that results from the edit.",
    ],
    ("image,text", "image,text"): [
        "Find the captioned picture after the requested change.",
        "Which labelled image shows this emoji edited as described?",
        "Retrieve the variant that the text asks for, with its name.",
        "Show me the changed emoji together with its label.",
        "Identify the picture and name that result from the edit.",
    ],
}
SCENE_INSTRUCTIONS = {
    ("text", "image"): [
        "Find the picture in which things are placed as described.",
        "Which image shows this arrangement?",
        "Retrieve the scene that matches the caption.",
        "Show me the picture where everything is where the text says.",
        "Identify the image with these things in these places.",
    ],
    ("text", "text"): [
        "Find another caption of the same scene.",
        "Which sentence describes the same arrangement in other words?",
        "Retrieve the paraphrase of this caption.",
        "Show me a text that means the same scene.",
        "Identify the caption that places the same things in the same way.",
    ],
    ("text", "image,text"): [
        "Find the picture with text in which things are placed as described.",
        "Which captioned image shows this arrangement?",
        "Retrieve the scene and its text that match the caption.",
        "Show me the annotated picture where everything is where the text says.",
        "Identify the image and words with these things in these places.",
    ],
    ("image", "text"): [
        "Find the caption that says where things are in this picture.",
        "What is where in this image?",
        "Retrieve the description of this arrangement.",
        "Describe this scene.",
        "Identify the sentence that is true of this picture.",
    ],
    ("image", "image"): [
        "Find the same arrangement drawn in another style.",
        "Which picture shows the same things in the same places, drawn differently?",
        "Retrieve another drawing of this scene.",
        "Show me this scene in a different design.",
        "Identify the image with the same things in the same arrangement.",
    ],
    ("image,text", "text"): [
        "Answer the question about where things are in the picture.",
        "Find the answer to this question about the scene.",
        "Retrieve the text that answers what is asked about the image.",
        "Look at the picture and name what is asked for.",
        "Identify the right answer to the question about this arrangement.",
    ],
    ("image,text", "image"): [
        "Find the scene after the requested change.",
        "Which picture results from this edit?",
        "Retrieve the image in which things were moved or replaced as told.",
        "Show me the scene once the change is made.",
        "Identify the arrangement that the edit leads to.",
    ],
    ("image,text", "image,text"): [
        "Find the scene with its text after the requested change.",
        "Which annotated picture results from this edit?",
        "Retrieve the image and text in which things were moved or replaced as told.",
        "Show me the changed scene together with its words.",
        "Identify the captioned arrangement that the edit leads to.",
    ],
}

LABEL_QUERIES = [
    "{}",
    "{}",
    "a picture of: {}",
    "an emoji that shows: {}",
    "a drawing of: {}",
    "the {} emoji",
    "show me: {}",
]
NAME_QUESTIONS = [
    "what is this called {}?",
    "what is the name of this {}?",
    "how would you call it {}?",
    "name this {}",
    "which emoji is it {}?",
]
CHANGES = ["{}", "the same {}", "now {}", "this emoji {}", "change it: {}", "show it {}"]
GENDER_EDITS = {
    "man": ["as a man", "but a man", "drawn as a man"],
    "woman": ["as a woman", "but a woman", "drawn as a woman"],
    "person": ["as a person of no particular gender", "but gender-neutral", "drawn without a gender"],
}
TONE_EDITS = ["with {} skin tone", "with {} skin", "in a {} skin tone"]
NO_TONE_EDITS = ["with plain yellow skin", "without a skin tone", "in emoji yellow"]

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
RELATION_WORDS = {
    "left": ["to the left of", "left of", "on the left of"],
    "right": ["to the right of", "right of", "on the right of"],
    "above": ["above", "over"],
    "below": ["below", "under", "beneath"],
}
RELATION_TO_IT = {
    "left": ["to its left", "on its left"],
    "right": ["to its right", "on its right"],
    "above": ["above it", "over it"],
    "below": ["below it", "under it"],
}
SIDES = {"left": "on the left", "right": "on the right", "above": "at the top", "below": "at the bottom"}

# x stands where "relation" says, seen from y.
PAIR_CAPTIONS = [
    "{ax} {relation} {ay}",
    "{ay} with {ax} {to_it}",
    "{ay} and, {to_it}, {ax}",
    "{side}, {ax}; {other_side}, {ay}",
    "there is {ax} {relation} {ay}",
]
TRIPLE_CAPTIONS = [
    "{ax} {relation_x} {ay}, with {az} {relation_z} the {y}",
    "{az} {relation_z} {ay}, with {ax} {relation_x} the {y}",
    "{ay} with {ax} {x_to_it} and {az} {z_to_it}",
    "{ay}; {az} {z_to_it}, {ax} {x_to_it}",
]
QUESTIONS = ["what is {relation} the {y}?", "which thing is {relation} the {y}?", "name the object {relation} the {y}"]
SWAPS = [
    "swap the {x} and the {y}",
    "exchange the {y} and the {x}",
    "the {x} and the {y} trade places",
    "put the {x} where the {y} is, and the other way round",
]
MOVES = [
    "move the {x} {relation} the {y}",
    "put the {x} {relation} the {y}",
    "place the {x} {relation} the {y} instead",
    "the {x} should be {relation} the {y}",
]
REPLACEMENTS = [
    "replace the {old} with {new}",
    "put {new} in place of the {old}",
    "{new} instead of the {old}",
    "change the {old} into {new}",
]


def with_article(label: str) -> str:
    """A poodle, an owl, a unicorn."""
    return f"an {label}" if re.match(r"[aeio]|u(?!ni)", label, re.IGNORECASE) else f"a {label}"


def relation_words(relation: str, rng: random.Random) -> str:
    """One of the ways to say where a thing is."""
    return rng.choice(RELATION_WORDS[relation])


def edit(tone: str | None, gender: str | None, changed: str, rng: random.Random) -> str:
    """How to ask for the wanted tone or gender, whichever of the two is ``changed``."""
    if changed == "gender":
        assert gender is not None
        return rng.choice(GENDER_EDITS[gender])
    return rng.choice(TONE_EDITS).format(tone) if tone else rng.choice(NO_TONE_EDITS)


def instructions_tsv(datasets: dict[str, tuple[int, dict[tuple[str, str], list[str]]]]) -> list[str]:
    """Lines of ``query_instructions.tsv``: query modality, candidate modality, dataset, dataset id, prompts."""
    width = max(len(prompts) for _, table in datasets.values() for prompts in table.values())
    header = ["query_modality", "cand_modality", "dataset_name", "dataset_id"]
    header += [f"prompt_{number + 1}" for number in range(width)]
    rows = [
        [query, candidate, name, str(number), *prompts]
        for name, (number, table) in datasets.items()
        for (query, candidate), prompts in table.items()
    ]
    return ["\t".join(row) for row in [header, *rows]]
