"""From what people type to a caption: "please make me a cute T-Rex!" is "a tyrannosaurus".

What is understood otherwise than it was typed is said in notes ("t-rex: a tyrannosaurus", "two cars: one car"); what is
not known comes back with the three nearest kinds, by meaning and by spelling.  Plain Python: the page reads prompts
with this before any network is loaded.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from psd.embedded.captions.grammar import Caption
from psd.embedded.captions.kinds import COLOURS, list_known, read_kinds
from psd.embedded.captions.unknown import UnknownCaption

COLOUR_WORDS = {  # the ten colours and other names of them; those that only shade one mean nothing here
    **{colour: colour for colour in COLOURS},
    "crimson": "red", "scarlet": "red", "maroon": "red", "ruby red": "red", "cherry red": "red",
    "amber": "orange", "peach": "orange", "apricot": "orange", "ginger": "orange", "copper": "orange",
    "gold": "yellow", "golden": "yellow", "blond": "yellow", "blonde": "yellow", "lemon yellow": "yellow",
    "lime": "green", "olive": "green", "teal": "green", "emerald green": "green", "mint": "green", "khaki": "green",
    "cyan": "blue", "turquoise": "blue", "navy": "blue", "azure": "blue", "aqua": "blue", "indigo": "blue",
    "violet": "purple", "lilac": "purple", "lavender": "purple", "mauve": "purple", "plum": "purple",
    "magenta": "pink", "rose": "pink", "salmon pink": "pink", "fuchsia": "pink",
    "tan": "brown", "beige": "brown", "bronze": "brown", "chestnut": "brown",
    "grey": "white", "gray": "white", "silver": "white", "ivory": "white", "cream": "white", "snow white": "white",
    "dark": "", "light": "", "bright": "", "pale": "", "deep": "", "neon": "", "pastel": "",
}  # fmt: skip
RELATION_WORDS = {  # what says one of the two relations, and whether the two things change places
    "on top of": ("on top of", False), "on": ("on top of", False), "onto": ("on top of", False),
    "upon": ("on top of", False), "above": ("on top of", False), "under": ("on top of", True),
    "below": ("on top of", True), "beneath": ("on top of", True), "next to": ("next to", False),
    "beside": ("next to", False), "near": ("next to", False), "and": ("next to", False),
    "to the left of": ("next to", False), "left of": ("next to", False), "to the right of": ("next to", True),
    "right of": ("next to", True),
}  # fmt: skip
# Where a thing's name is over: what follows is a place, a deed or a property ("in a park", "with a big tail").
BREAKS = frozenset(
    "with without in inside at from of made full that which who wearing holding riding flying eating for to through "
    "around covered like playing running driving looking having has is as behind over by".split()
)
FILLERS = frozenset(
    "a an the my your this one another sitting standing lying placed please pls thanks thank you some".split()
)
POLITE = re.compile(
    r"^(?:(?:please|pls|hey|hi|hello|ok|okay|can you|could you|would you|i want|i would like|i'd like|i need|give me|"
    r"show me|make me|make|create|generate|build|render|draw|model|design|produce|let me see|show|gimme|want|"
    r"a picture of|an image of|a photo of|a 3d model of|3d model of|a model of|a 3d render of|a render of|3d|"
    r"a drawing of|a figure of|a statue of|a toy|me|us)\s+)+"
)
COUNTS = frozenset("two three four five six seven eight nine ten several many few couple pair bunch dozen".split())
IRREGULAR = {
    "mice": "mouse", "wolves": "wolf", "loaves": "loaf", "knives": "knife", "leaves": "leaf", "shelves": "shelf",
    "cacti": "cactus", "men": "man", "geese": "goose", "teeth": "tooth", "fungi": "fungus", "octopi": "octopus",
    "witches": "witch", "axes": "axe", "torches": "torch", "benches": "bench", "couches": "couch",
}  # fmt: skip
# More names than the table of kinds has; below, things that are no kind, with the kinds to offer in their place.
ALIASES = {
    "ketchup": "ketchup bottle", "mustard": "mustard bottle", "honey": "jar of honey", "wine": "wine bottle",
    "peanut butter": "jar of peanut butter", "t rex": "tyrannosaurus", "tyrannosaurus rex": "tyrannosaurus",
    "ball": "sphere", "nightstand": "night stand", "hay": "hay bale", "trashcan": "trash can",
    "box": "crate", "sail boat": "sailboat", "firetruck": "fire truck", "space ship": "spaceship", "hotdog": "hot dog",
    "cup cake": "cupcake", "icecream": "ice cream cone", "gold fish": "goldfish", "blow fish": "pufferfish",
    "viking longship": "viking ship", "cup of coffee": "coffee cup", "mug of coffee": "coffee cup", "ax": "axe",
    "cherry": "cherries", "grape": "grapes", "pancake": "pancakes", "french fry": "fries", "chocolate": "chocolate bar",
    "pizza slice": "pizza", "cheese burger": "burger", "dino": "tyrannosaurus", "pub": "house",
    "bookcase": "bookshelf", "teapot": "cup of tea", "jewel": "gem", "ring planet": "ringed planet",
    "ship": "pirate ship", "boat": "rowing boat", "loaf": "loaf of bread", "grave": "skull", "chicken": "roast turkey",
}  # fmt: skip
RELATED = {
    "dragon": ("tyrannosaurus", "apatosaurus", "velociraptor"), "cat": ("dog", "fox", "rat"),
    "kitten": ("dog", "fox", "rat"), "kitty": ("dog", "fox", "rat"), "doggy": ("dog", "wolf", "fox"),
    "lion": ("wolf", "fox", "dog"), "tiger": ("wolf", "fox", "dog"), "bear": ("wolf", "bull", "dog"),
    "elephant": ("bull", "horse", "apatosaurus"), "giraffe": ("alpaca", "apatosaurus", "horse"),
    "unicorn": ("horse", "stag", "alpaca"), "sheep": ("alpaca", "cow", "donkey"), "goat": ("alpaca", "stag", "deer"),
    "pig": ("cow", "bull", "donkey"), "bird": ("bee", "wasp", "roast turkey"), "duck": ("bee", "fish", "frog"),
    "penguin": ("fish", "dolphin", "frog"), "owl": ("bee", "wasp", "fox"), "turtle": ("frog", "crab", "snake"),
    "octopus": ("crab", "anglerfish", "manta ray"), "crocodile": ("velociraptor", "snake", "frog"),
    "ufo": ("spaceship", "alien", "space rover"), "airplane": ("spaceship", "van", "sailboat"),
    "plane": ("spaceship", "van", "sailboat"), "helicopter": ("spaceship", "van", "tank"),
    "train": ("van", "delivery truck", "fire truck"), "bus": ("van", "ambulance", "delivery truck"),
    "bicycle": ("cart", "race car", "tractor"), "motorcycle": ("race car", "car", "tractor"),
    "submarine": ("whale", "cruise ship", "tank"), "mango": ("apple", "pear", "avocado"),
    "orange": ("tangerine", "lemon", "apple"), "peach": ("apple", "tangerine", "pear"),
    "toast": ("slice of bread", "loaf of bread", "fried egg"), "fly agaric": ("mushroom", "flower", "tree stump"),
    "samurai": ("katana", "knight", "armor"), "samurai sword": ("katana", "sword", "scimitar"),
    "treasure": ("treasure chest", "gold bars", "coin"), "lighthouse": ("watchtower", "castle tower", "street lamp"),
    "moon": ("planet", "ringed planet", "star"),
    "sun": ("star", "planet", "flower"), "earth": ("planet", "ringed planet", "mountain"),
    "woman": ("witch", "farmer", "king"), "girl": ("witch", "farmer", "astronaut"),
    "man": ("farmer", "knight", "pirate"), "boy": ("farmer", "knight", "astronaut"),
    "person": ("farmer", "knight", "astronaut"), "princess": ("witch", "king", "crown"),
    "queen": ("king", "witch", "crown"), "wizard": ("witch", "king", "potion"), "ghost": ("zombie", "skull", "alien"),
    "skeleton": ("skull", "bone", "zombie"), "ninja": ("katana", "knight", "zombie"),
    "snowman": ("snowflake", "snowy tree", "rabbit hero"), "teddy bear": ("rabbit hero", "monster", "dog"),
    "guitar": ("radio", "bow", "shovel"), "computer": ("radio", "desk lamp", "washing machine"),
    "phone": ("radio", "battery", "flashlight"), "clock": ("bell", "ring", "radio"),
    "umbrella": ("mushroom", "tent", "gazebo"), "present": ("crate", "treasure chest", "heart"),
    "gift": ("crate", "treasure chest", "heart"), "hat": ("helmet", "crown", "witch"),
    "shoe": ("backpack", "helmet", "armor"), "volcano": ("mountain", "campfire", "rock"),
    "skyscraper": ("castle tower", "watchtower", "bell tower"),
    "rose": ("flower", "berry bush", "lily pad"), "tulip": ("flower", "lily pad", "houseplant"),
    "hen": ("roast turkey", "egg", "chicken leg"),
    "zebra": ("horse", "donkey", "cow"), "camel": ("alpaca", "horse", "donkey"), "hippo": ("bull", "cow", "whale"),
    "rhino": ("bull", "cow", "horse"), "rhinoceros": ("bull", "cow", "horse"), "monkey": ("monster", "dog", "zombie"),
    "gorilla": ("monster", "zombie", "bull"), "panda": ("dog", "cow", "bull"), "koala": ("dog", "rat", "alpaca"),
    "kangaroo": ("velociraptor", "deer", "rabbit hero"), "hare": ("rabbit hero", "rat", "fox"),
    "squirrel": ("rat", "fox", "dog"), "hedgehog": ("rat", "pufferfish", "fox"), "hamster": ("rat", "dog", "fox"),
    "parrot": ("bee", "wasp", "fish"), "eagle": ("bee", "wasp", "dolphin"), "swan": ("dolphin", "fish", "manta ray"),
    "flamingo": ("alpaca", "koi", "clownfish"), "butterfly": ("bee", "wasp", "flower"),
    "dragonfly": ("wasp", "bee", "spaceship"), "ant": ("bee", "wasp", "spider"), "seal": ("dolphin", "whale", "fish"),
    "starfish": ("star", "crab", "fish"), "jellyfish": ("manta ray", "mushroom", "fish"),
    "snail": ("snake", "frog", "crab"), "lizard": ("velociraptor", "snake", "frog"),
    "gecko": ("frog", "snake", "velociraptor"), "laptop": ("radio", "desk lamp", "crate"),
    "piano": ("table", "chest of drawers", "bench"), "violin": ("bow", "radio", "bell"),
    "drum": ("barrel", "cylinder", "bell"), "watch": ("ring", "radio", "bell"),
    "television": ("radio", "washing machine", "crate"), "tv": ("radio", "washing machine", "crate"),
    "football": ("sphere", "planet", "coin"), "balloon": ("sphere", "lollipop", "planet"),
    "kite": ("diamond", "sailboat", "flag"), "scooter": ("cart", "race car", "car"),
    "tram": ("van", "delivery truck", "ambulance"), "jet": ("spaceship", "race car", "van"),
    "pyramid of giza": ("pyramid", "mountain", "tent"), "igloo": ("tent", "house", "snowy tree"),
    "barn": ("house", "tent", "gazebo"), "angel": ("knight", "king", "witch"),
    "baby": ("farmer", "rabbit hero", "astronaut"), "superhero": ("knight", "robot", "rabbit hero"),
    "viking": ("knight", "farmer", "pirate"), "soldier": ("knight", "tank", "helmet"),
    "child": ("farmer", "rabbit hero", "astronaut"), "santa": ("king", "farmer", "snowy tree"),
    "kiwi": ("avocado", "lemon", "apple"), "vase of flowers": ("vase", "flower", "houseplant"),
    "pretzel": ("donut", "croissant", "cookie"), "bagel": ("donut", "loaf of bread", "croissant"),
    "umbrella stand": ("vase", "barrel", "bucket"), "rainbow": ("ring", "flower", "planet"),
    "island": ("mountain", "rock", "pirate ship"), "camera": ("radio", "flashlight", "battery"),
    "glasses": ("ring", "flashlight", "helmet"), "pen": ("candle", "dagger", "scroll"),
    "pencil": ("candle", "dagger", "scroll"), "scissors": ("dagger", "axe", "sword"),
    "spaghetti": ("bowl of soup", "noodle box", "pizza"), "rice": ("rice ball", "bowl of soup", "sushi"),
    "grass": ("bush", "hay bale", "tree"), "leaf": ("lily pad", "houseplant", "tree"),
}  # fmt: skip

# For a prompt that names no thing: three kinds that take its colour, or just three.
OF_COLOUR = {
    "red": ("apple", "mushroom", "heart"), "orange": ("pumpkin", "fish", "flower"),
    "yellow": ("star", "pear", "tractor"), "green": ("frog", "tree", "pear"), "blue": ("whale", "car", "shark"),
    "purple": ("potion", "flower", "grapes"), "pink": ("donut", "cupcake", "flower"),
    "brown": ("horse", "chair", "dog"), "black": ("spider", "bomb", "helmet"), "white": ("cloud", "horse", "wolf"),
}  # fmt: skip
ANY = ("fox", "mushroom", "car")


class _Word(str):
    """A word as it is read, in lower case, with what joined it to the next one as it was typed."""

    joint = " "  # or "-"


@dataclass(frozen=True)
class Reading:
    """What was understood: a caption with notes on what was read otherwise, or else captions of the nearest kinds."""

    caption: Caption | None
    notes: tuple[str, ...] = ()
    nearest: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The caption's wording; empty where nothing was understood."""
        return self.caption.text if self.caption else ""


@dataclass
class _Part:
    """One thing as it is read: the last noun before a break is what it is."""

    noun: str | None = None
    colour: str | None = None
    is_unknown: bool = False  # the last thing named is no kind
    notes: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


def read_prompt(text: str) -> Reading:
    """The caption that ``text`` means; where no kind is known in it, the three nearest instead."""
    reading = _read_words(_split_words(text))
    caption = reading.caption
    if caption is None:
        return reading
    weak = [noun for noun in (caption.kind, caption.other_kind) if noun and noun not in list_known()]
    said = (f"{noun}: the small models do not draw it well yet" for noun in weak)
    return replace(reading, notes=(*reading.notes, *said))


def _read_words(words: list[_Word]) -> Reading:
    first, relation, end = _read_part(words)
    if first.noun is None or first.is_unknown:
        nearest = find_nearest_kinds(" ".join(first.words)) if first.words else _list_of_colour(words, first.colour)
        return Reading(None, nearest=tuple(Caption(noun, _give_colour(noun, None)).text for noun in nearest))
    caption = Caption(first.noun, _give_colour(first.noun, first.colour, first.notes))
    if relation is None:
        return Reading(caption, tuple(first.notes + _tell_dropped(words[end:])))
    name, is_swapped = RELATION_WORDS[relation]
    start = end + len(relation.split())
    second, _, second_end = _read_part(words[start:])
    if second.noun and not second.is_unknown:
        colour = _give_colour(second.noun, second.colour, second.notes)
        pair = Caption(caption.kind, caption.colour, name, second.noun, colour)
        pair = pair.mirror_image if is_swapped else pair
        if pair.is_valid:
            return Reading(pair, tuple(first.notes + second.notes + _tell_dropped(words[start + second_end :])))
        return Reading(caption, (*first.notes, f"{_quote_words(words[end:])}: dropped, these do not come as a pair"))
    return Reading(caption, tuple(first.notes + _tell_dropped(words[end:])))


def reword_text(text: str) -> str:
    """The caption that ``text`` means, in the words that the prior was trained on.

    Raises UnknownCaption, with the nearest kinds, where it names nothing of this world.
    """
    reading = read_prompt(text)
    if reading.caption is None:
        raise UnknownCaption(text, list(reading.nearest))
    return reading.text


def _split_words(text: str) -> list[_Word]:
    """The words in lower case, without punctuation and without a polite beginning; a hyphen parts them too."""
    words = []
    for found, joint in re.findall(r"([a-z0-9']+)(-(?=[a-z0-9']))?", text.lower()):
        words.append(_Word(found))
        words[-1].joint = joint or " "
    polite = POLITE.match(" ".join([*words, ""]))
    return words[len(polite[0].split()) if polite else 0 :]


def _quote_words(words: Sequence[_Word]) -> str:
    """The words as they were typed, but for their case and their punctuation."""
    return "".join(part for word in words for part in (word, word.joint))[:-1]


def _read_part(words: list[_Word]) -> tuple[_Part, str | None, int]:
    """The first thing that ``words`` name, the relation after it if one follows, and how many words that took."""
    part, position, count = _Part(), 0, ""
    while position < len(words):
        word = words[position]
        length, noun = _match_phrase(words[position:])
        relation = _match_longest(words[position:], RELATION_WORDS)
        colour = _match_longest(words[position:], COLOUR_WORDS)
        if length:
            said, quoted = (
                " ".join(words[position : position + length]),
                _quote_words(words[position : position + length]),
            )
            part.is_unknown = noun is None
            if noun is not None:
                part.noun = noun
                if count:
                    part.notes.append(f"{count} {quoted}: {'one ' if read_kinds()[noun].article else ''}{noun}")
                elif said not in (noun, noun + "s"):
                    part.notes.append(f"{quoted}: {Caption(noun, _give_colour(noun, None)).text}")
                count = ""
            part.words += words[position : position + length]
        elif relation and part.words:
            return part, relation, position
        elif word in BREAKS and part.noun:
            break
        elif colour:
            length = len(colour.split())
            part.colour = part.colour or COLOUR_WORDS[colour] or None
            if colour not in COLOURS and COLOUR_WORDS[colour]:
                part.notes.append(f"{_quote_words(words[position : position + length])}: {COLOUR_WORDS[colour]}")
        elif word in COUNTS or word.isdigit():
            count = f"{count} {word}".lstrip()
        elif word == "of" and count:
            count += " of"
        elif word not in FILLERS:
            part.notes.append(f"{word}: dropped")
            part.words.append(word)
        position += length or 1
    if count:
        part.notes.append(f"{count}: dropped")
    return part, None, position


def _match_longest(words: Sequence[str], phrases: Mapping[str, object]) -> str | None:
    """The longest of ``phrases`` that ``words`` begin with."""
    starts = (" ".join(words[:length]) for length in (4, 3, 2, 1) if length <= len(words))
    return next((start for start in starts if start in phrases), None)


def _match_phrase(words: Sequence[str]) -> tuple[int, str | None]:
    """How many words name a thing here (0: none), and the kind that they mean (None: a thing that is none)."""
    for length in (4, 3, 2, 1):
        if length > len(words):
            continue
        *before, last = words[:length]
        for form in _singular_forms(last):
            phrase = " ".join([*before, form])
            if phrase in list_names():
                return length, list_names()[phrase]
            if phrase in RELATED and phrase not in COLOUR_WORDS:
                return length, None
    if len(words[0]) >= 5 and words[0] not in COLOUR_WORDS and words[0] not in FILLERS | BREAKS | COUNTS:
        near = difflib.get_close_matches(words[0], list_names(), 1, 0.85)
        if near:
            return 1, list_names()[near[0]]
    return 0, None


def _singular_forms(word: str) -> list[str]:
    forms = [word]
    if word in IRREGULAR:
        forms.append(IRREGULAR[word])
    if word.endswith("ies"):
        forms.append(word[:-3] + "y")
    if word.endswith("es"):
        forms.append(word[:-2])
    if word.endswith("s"):
        forms.append(word[:-1])
    return forms


@functools.cache
def list_names() -> dict[str, str]:
    """Every name of a kind with its noun: synonyms and aliases give way to nouns, and to nothing that is a colour."""
    names = dict(ALIASES)
    for noun, kind in read_kinds().items():
        for synonym in kind.synonyms:
            plain = " ".join(_split_words(synonym))
            if plain.split()[0] not in COLOUR_WORDS:
                names.setdefault(plain, noun)
    return names | {noun: noun for noun in read_kinds()}


def _give_colour(noun: str, colour: str | None, notes: list[str] | None = None) -> str | None:
    """The colour word that goes with ``noun``: none where it takes none, red where a primitive was given none."""
    colours = read_kinds()[noun].colours
    if colour in colours:
        return colour
    given = None if None in colours else "red"
    if notes is not None:
        notes.append(f"{noun}: {given}" if given else f"{colour}: dropped, {noun} comes in its own colours")
    return given


def _tell_dropped(words: list[_Word]) -> list[str]:
    return [f"{_quote_words(words)}: dropped"] if set(words) - FILLERS else []


def find_nearest_kinds(text: str, count: int = 3) -> list[str]:
    """The kinds nearest to ``text``: first by meaning, then those that share a word, then by spelling.

    What the prior does not draw well comes after everything that it does.
    """
    found, names = _find_by_meaning(text.lower().split()), list_names()
    alike = difflib.SequenceMatcher(b=text.lower(), autojunk=False)

    def likeness(name: str) -> float:
        alike.set_seq1(name)
        return alike.ratio()

    found += [names[name] for name in sorted(names, key=likeness, reverse=True)[: 4 * count]]
    return _choose_known(found)[:count]


def _list_of_colour(words: Sequence[str], colour: str | None) -> list[str]:
    """Three kinds for ``words`` that name no thing: by meaning ("gold": gold bars), then of the ``colour``."""
    meant = [word for word in words if COLOUR_WORDS.get(word) != ""]  # "light blue" is no street light
    return _choose_known([*_find_by_meaning(meant), *OF_COLOUR.get(colour or "", ANY)])[:3]


def _find_by_meaning(words: Sequence[str]) -> list[str]:
    """The kinds to offer in the place of what ``words`` name, and those that share a word with them."""
    words = [form for word in words for form in _singular_forms(word)]
    phrases = [" ".join(words[i:j]) for i in range(len(words)) for j in range(len(words), i, -1)]
    found = [noun for phrase in phrases for noun in RELATED.get(phrase, ())]
    return found + [noun for name, noun in list_names().items() if set(name.split()) & set(words)]


def _choose_known(nouns: Sequence[str]) -> list[str]:
    """Each of ``nouns`` once, those that the prior draws well first."""
    return sorted(dict.fromkeys(nouns), key=lambda noun: noun not in list_known())
