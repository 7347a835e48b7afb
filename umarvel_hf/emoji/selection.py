"""Which emoji the pack holds, and what counts as one family. Read by the build script only."""

from __future__ import annotations

from typing import Any

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
GENDERED_TONES = ("light", "medium", "dark")  # five tones of three genders would fill the pack with people

MAN, WOMAN, PERSON = "1F468", "1F469", "1F9D1"
GENDER_SIGNS = {"2642": "man", "2640": "woman"}


def listed(text: str) -> list[str]:
    """Labels separated by bars or line ends."""
    return [label.strip() for line in text.strip().splitlines() for label in line.split("|")]


# Subgroups left out whole: flags, and signs whose drawings hardly differ from one another.
EXCLUDED_SUBGROUPS = set(
    listed("""
    country-flag|flag|subdivision-flag|skin-tone|hair-style|transport-sign|warning|arrow|religion|zodiac|av-symbol
    gender|math|punctuation|currency|other-symbol|keycap|alphanum|geometric|family|person-symbol|cat-face|sound
    hotel|money|place-religious
    """)
)

# Single emoji left out: near-twins of one that is kept, or drawings that name something else in another style.
EXCLUDED_LABELS = set(
    listed("""
    grinning face with big eyes|grinning face with smiling eyes|beaming face with smiling eyes|slightly smiling face
    smiling face|kissing face|kissing face with closed eyes|kissing face with smiling eyes
    squinting face with tongue|face with tongue|slightly frowning face|frowning face with open mouth|hushed face
    worried face|confused face|disappointed face|tired face|expressionless face|face without mouth
    sad but relieved face|downcast face with sweat|persevering face|anguished face|heart with arrow|growing heart
    beating heart|revolving hearts|heart decoration|heart exclamation|black heart|anger symbol|hundred points|hole
    left speech bubble|right anger bubble|dashing away|eye in speech bubble|middle finger|kiss mark|new moon
    waxing crescent moon|first quarter moon|waxing gibbous moon|waning gibbous moon|last quarter moon
    waning crescent moon|new moon face|first quarter moon face|last quarter moon face|full moon face
    sun behind small cloud|sun behind large cloud|sun behind rain cloud|cloud with lightning and rain
    snowman without snow|fog|foggy|umbrella|umbrella with rain drops|sunrise over mountains|cityscape at dusk|sunset
    bridge at night|night with stars|cyclone|globe showing Americas|globe showing Asia-Australia
    globe with meridians|map of Japan|mount fuji|national park|desert|Japanese post office|love hotel
    convenience store|department store|derelict house|house with garden|houses|bank|railway car|high-speed train
    train|metro|light rail|station|tram car|trolleybus|minibus|oncoming bus|oncoming police car|oncoming taxi
    oncoming automobile|mountain railway|suspension railway|mountain cableway|motorway|bus stop|construction
    vertical traffic light|small airplane|airplane departure|airplane arrival|motor boat|ferry|passenger ship
    locomotive|tear-off calendar|spiral calendar|open file folder|card index|card index dividers
    chart increasing with yen|chart decreasing|linked paperclips|round pushpin|locked with pen|locked with key
    unlocked|old key|hammer and pick|hammer and wrench|chains|link|green book|orange book
    notebook with decorative cover|notebook|ledger|page facing up|rolled-up newspaper|bookmark|bookmark tabs|e-mail
    incoming envelope|envelope with arrow|outbox tray|closed mailbox with lowered flag|open mailbox with raised flag
    open mailbox with lowered flag|camera with flash|video camera|magnifying glass tilted right|optical disk
    computer disk|mobile phone with arrow|pager|level slider|musical notes|musical score|label|pen|fountain pen
    twelve o’clock|twelve-thirty|one o’clock|one-thirty|two o’clock|two-thirty|three o’clock|three-thirty
    four o’clock|four-thirty|five o’clock|five-thirty|six o’clock|six-thirty|seven o’clock|seven-thirty
    eight o’clock|eight-thirty|nine o’clock|nine-thirty|ten o’clock|ten-thirty|eleven o’clock|eleven-thirty
    hourglass not done|timer clock|2nd place medal|3rd place medal|sports medal|spade suit|heart suit|diamond suit
    club suit|mahjong red dragon|Japanese dolls|moon viewing ceremony|tanabata tree|pine decoration|wind chime
    admission tickets|clinking beer mugs|clinking glasses|tumbler glass|fork and knife|green apple|woman’s sandal
    clutch bag|handbag|shopping bags|woman’s clothes|oden|rice cracker|bento box|fish cake with swirl
    front-facing baby chick|baby chick|water buffalo|two-hump camel|ox|rat|boar|pig nose|leopard|dove|bug
    white flower|herb|leaf fluttering in wind|fallen leaf|sheaf of rice|sport utility vehicle|articulated lorry
    railway track|seat|cricket game|alien monster|ogre|goblin|backhand index pointing left
    backhand index pointing right|backhand index pointing down|raised back of hand|left-facing fist
    right-facing fist|person in bed|person taking bath|rightwards hand|leftwards hand|selfie|handshake
    leftwards pushing hand|rightwards pushing hand|palm down hand|hand with index finger and thumb crossed
    """)
)

# Families of things whose names do not show that they belong together.
MERGED_FAMILIES = {
    "dog": "dog face|poodle",
    "cat": "cat face",
    "tiger": "tiger face",
    "horse": "horse face",
    "cow": "cow face",
    "pig": "pig face",
    "mouse": "mouse face",
    "rabbit": "rabbit face",
    "monkey": "monkey face|see-no-evil monkey|hear-no-evil monkey|speak-no-evil monkey",
    "dragon": "dragon face",
    "sun": "sun with face",
    "chicken": "hatching chick",
    "whale": "spouting whale",
    "ice cream": "soft ice cream",
    "red heart": "yellow heart|green heart|blue heart|purple heart|sparkling heart|two hearts",
    "star": "glowing star",
    "closed book": "blue book",
    "banknote": "dollar banknote",
    "skull": "skull and crossbones",
    "smiling face with horns": "angry face with horns",
    "cloud": "cloud with rain|cloud with snow|cloud with lightning|sun behind cloud",
    "truck": "delivery truck",
}
MERGED = {label: family for family, labels in MERGED_FAMILIES.items() for label in listed(labels)}

# People kept with three genders and, for man and woman, three tones.
PEOPLE = set(
    listed("""
    health worker|student|teacher|judge|farmer|cook|mechanic|office worker|scientist|singer|artist|pilot|astronaut
    firefighter|police officer|person gesturing OK|guard|construction worker|person wearing turban|person in tuxedo
    person with veil|factory worker|mage|fairy|vampire|elf|person gesturing NO|person raising hand|person bowing
    person shrugging|person walking|person surfing|person swimming|person lifting weights|person biking
    person cartwheeling|person juggling|person: red hair|person with white cane|person in manual wheelchair
    """)
)

# What scenes are made of: single things that a child can name and that look different from each other at 30 pixels.
SCENE_LABELS = listed("""
    gorilla|poodle|fox|cat|lion|tiger|horse|unicorn|cow|pig|goat|camel|elephant|rhinoceros|rabbit|koala|panda|turkey
    rooster|penguin|eagle|duck|owl|frog|turtle|lizard|snake|dragon|whale|dolphin|shark|octopus|crab|snail|butterfly
    ant|honeybee|lady beetle|spider|scorpion|bat|rose|sunflower|tulip|palm tree|evergreen tree|cactus|mushroom
    maple leaf|watermelon|lemon|banana|pineapple|red apple|pear|strawberry|tomato|avocado|eggplant|carrot|cucumber
    croissant|hamburger|pizza|hot dog|taco|doughnut|cookie|birthday cake|lollipop|wine glass|volcano|castle|tent
    fountain|bus|fire engine|police car|tractor|motorcycle|bicycle|sailboat|anchor|airplane|helicopter|rocket
    alarm clock|rainbow|snowflake|snowman|balloon|trophy|soccer ball|basketball|crystal ball|necktie|dress|kimono
    backpack|crown|top hat|high-heeled shoe|headphone|guitar|trumpet|violin|saxophone|telephone|laptop|television
    candle|light bulb|package|pencil|crayon|pushpin|key|hammer|wrench|bomb|shield|gear|microscope|telescope
    shopping cart|moai|robot|ghost|red heart
""")

# Where WordNet's first sense is another thing than the one drawn, or its gloss says next to nothing.
WRONG_GLOSSES = set(
    listed("""
    ghost|alien|dragon|dolphin|rosette|chestnut|soft ice cream|cityscape|fire|ribbon|joystick|crown|radio|keyboard
    television|blue book|hammer|pick|peach|watermelon|memo
    """)
)

# Noun categories of WordNet (lexicographer files) in which a label of each group may be looked up.
WORDNET_FILES = {
    "smileys-emotion": {"18"},
    "people-body": {"08", "18"},
    "animals-nature": {"05", "20"},
    "food-drink": {"13", "20", "06"},
    "travel-places": {"06", "17", "19"},
    "activities": {"06"},
    "objects": {"06", "10", "27"},
}


def hex_key(hexcode: str) -> str:
    """The sequence as the sources' file names spell it, once variation selectors and leading zeros are gone."""
    return "-".join(part.lstrip("0") for part in hexcode.lower().split("-") if part != "fe0f")


def gender_of(hexcode: str) -> str | None:
    """Man, woman or person, if the sequence says so."""
    parts = hexcode.split("-")
    for part in parts:
        if part in GENDER_SIGNS:
            return GENDER_SIGNS[part]
    if len(parts) > 2:
        return {MAN: "man", WOMAN: "woman", PERSON: "person"}.get(parts[0])
    return None


def family_of(label: str, hexcode: str, labels: dict[str, str]) -> str:
    """The label of the neutral member of the family.

    Args:
        labels: label of every hexcode without variation selectors.
    """
    parts = [part for part in hexcode.split("-") if part != "FE0F"]
    if parts[0] in (MAN, WOMAN) and len(parts) > 2:
        label = labels.get("-".join([PERSON, *parts[1:]]), label)
    elif len(parts) == 3 and parts[2] in GENDER_SIGNS:
        label = labels.get(parts[0], label)
    return MERGED.get(label, label)


def tone_of(skin: dict[str, Any]) -> str | None:
    """The name of a skin variant's single tone; None where two people have different ones."""
    tone = skin["tone"]
    return TONES[tone - 1] if isinstance(tone, int) else None
