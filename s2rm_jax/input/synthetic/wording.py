"""The words of a meaning, and the vocabulary that holds them all."""

from __future__ import annotations

import itertools

import numpy as np

from s2rm_jax.input.synthetic.chance import pick
from s2rm_jax.input.synthetic.difficulty import COLOURS, SHAPES, TEXTURES
from s2rm_jax.input.synthetic.meaning import Extreme, Meaning, Noun, Nth, Related

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_ANY_SHAPE = ("shape", "object", "thing")
_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_TEXTURE_WORDS = {texture: (texture,) for texture in TEXTURES} | {"dotted": ("dotted", "spotted")}
_RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "under", "lower than"),
}
_EXTREME_PHRASES = {
    "left": ("the leftmost {}", "the {} furthest left", "the {} furthest to the left"),
    "right": ("the rightmost {}", "the {} furthest right", "the {} furthest to the right"),
    "top": ("the topmost {}", "the highest {}", "the {} nearest the top"),
    "bottom": ("the bottommost {}", "the lowest {}", "the {} nearest the bottom"),
    "largest": ("the largest {}", "the biggest {}"),
    "smallest": ("the smallest {}",),
}
_RANKS = {2: "second", 3: "third", 4: "fourth"}
_NTH_PHRASES = ("the {rank} {noun} from the {side}", "the {noun} that is {rank} from the {side}")
_LINKS = ("", "that is ")

MAX_RANK = max(_RANKS)


def say(meaning: Meaning, rng: np.random.Generator) -> str:
    """Returns a sentence that says the meaning, in one of several wordings."""
    match meaning:
        case Noun():
            return f"the {_noun(meaning, rng)}"
        case Extreme(which, noun):
            return pick(rng, _EXTREME_PHRASES[which]).format(_noun(noun, rng))
        case Nth(rank, side, noun):
            return pick(rng, _NTH_PHRASES).format(rank=_RANKS[rank], noun=_noun(noun, rng), side=side)
        case Related():
            return _related(meaning, rng, inner=False)


def _noun(noun: Noun, rng: np.random.Generator) -> str:
    words = []
    if noun.size:
        words.append(pick(rng, _SIZE_WORDS[noun.size]))
    if noun.texture:
        words.append(pick(rng, _TEXTURE_WORDS[noun.texture]))
    if noun.colour:
        words.append(noun.colour)
    words.append(noun.shape or pick(rng, _ANY_SHAPE))
    return " ".join(words)


def _related(meaning: Related, rng: np.random.Generator, inner: bool) -> str:
    # An inner relation always has its "that is", which ties it to the noun just before it.
    link = "that is " if inner else pick(rng, _LINKS)
    relation = pick(rng, _RELATION_WORDS[meaning.relation])
    landmark = meaning.landmark
    told = _related(landmark, rng, inner=True) if isinstance(landmark, Related) else say(landmark, rng)
    return f"the {_noun(meaning.noun, rng)} {link}{relation} {told}"


def _make_vocabulary() -> tuple[str, ...]:
    tables = (_SIZE_WORDS, _TEXTURE_WORDS, _RELATION_WORDS, _EXTREME_PHRASES)
    phrases = [*itertools.chain(*(itertools.chain(*table.values()) for table in tables))]
    phrases += [*SHAPES, *COLOURS, *_ANY_SHAPE, *_NTH_PHRASES, *_LINKS, *_RANKS.values(), "the left right top bottom"]
    words = {word for phrase in phrases for word in phrase.split() if "{" not in word}
    return (*SPECIAL_TOKENS, *sorted(words))


VOCABULARY = _make_vocabulary()  # the same for every difficulty, so that a model moves from one to another
