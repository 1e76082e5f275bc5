"""Mirrored expressions: left and right exchanged, or a refusal if the result might be false.

Exchanging the words is the easy part. The hard parts are to recognize uses of "left" and "right" that are not sides
("the truck right behind", "the last slice left"), and other things that a mirror changes: writing, numbers, clock
positions, and an order that is counted from the left without saying so ("the third giraffe"). Anything uncertain is
refused, since a refused expression costs a mirrored view, while a wrong one teaches the opposite. The rules are for
English; an expression with letters of another script, or with accents, is refused.

The rules were made by reading real expressions, in which no mirrored side was found wrong: 14,156 of RefCOCOg (umd
test, google val) and RefCOCO (testA), and 10,834 of RefCOCO (unc val). The counts are in docs/training.md.
"""

from __future__ import annotations

import re
from itertools import pairwise

_SIDES = {"left": "right", "right": "left"}
_ENDINGS = ("", "most", "hand", "handed", "side", "sided", "ward", "wards", "er", "est")
_COMPOUND = re.compile(rf"(left|right)({'|'.join(_ENDINGS)})")
# Words and sentence boundaries; apostrophes and hyphens only separate words ("man's", "left-hand").
_TOKEN = re.compile(r"[a-z0-9]+|[.,;:!?]", re.IGNORECASE)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OF_BODIES = _words(
    "hand handed arm leg foot feet shoulder knee elbow wrist ankle thumb ear eye paw tusk wing hip thigh cheek breast"
    " calf"
)
# "left" or "right" is certainly a side with one of these after it,
_SIDE_NOUNS = _OF_BODIES | _words(
    "side sides sided most corner corners half end edge part portion quarter third section picture pictures pic image"
    " photo photograph frame panel screen front rear top bottom upper lower foreground background row column lane"
)
# or before it,
_BEFORE = _words(
    "at on to from far furthest farthest farther further upper lower top bottom front back extreme very outer outermost"
    " rear most"
)
# or a possessive or a direction before it, unless it may be an adverb ("its right behind"),
_BEFORE_UNLESS_ADVERB = _words(
    "the his her its their my your our whose facing faces faced pointing points looking looks turned turning heading"
    " headed leaning leans walking moving going toward towards in way middle center centre"
)
# or "the" before it and one of these before "the".
_BEFORE_THE = _words("on to at in from toward towards facing")

# It is a side too at the end of a few words ("man left", "blue shirt right"), before "of" and after an ordinal, unless
# one of these comes before it: "what is left", "two slices left", "you are right".
_FEW = 4
_REMAINING = _words(
    "all nobody anyone is are was were be been isn isnt has have had having got s that thats which who what whats"
    " where there theres with"
    " just only still almost no not never none nothing few more most many much some any one two three four five six"
    " seven eight nine ten half bit rest lot remaining last you i we he she they it im ive me if so"
)
_REMAINING_PAIRS = (("little", "left"), ("all", "right"))

# Words after which "right" is an adverb ("right behind") or "left" a verb ("left on the plate").
_ADVERB_AFTER = _words(
    "behind beind next beside besides above below beneath under underneath in at on by near close against between"
    " across after before over up down out outside inside there here where through around along alongside beyond past"
    " off onto into away as to alone untouched unattended uneaten for with is are was not"
)
# Words that never follow a side: leftovers, and "right" as correct or immediate.
_NEVER_AFTER = _words(
    "over overs way ways angle angles size sized kind type amount direction thing time place spot height position"
    " tool moment now away turn turns angled triangle answer choice luggage"
)

# Writing is mirrored too, and so are rotations and compass directions.
_WRITING = _words(
    "says say saying said read reads reading written writing writings writes word words wording worded letter letters"
    " lettered lettering text texts label labels labeled labelled labeling logo logos spell spells spelled spelling"
    " printed print prints initial initials number numbers numbered numeral numerals digit digits character characters"
    " alphabet named name names titled title caption license slogan brand sign signs signage signboard"
)
_NUMBERS = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(thir|four|fif|six|seven|eigh|nine)teen|twenty"
)
_NUMBERED = rf"(jersey|bib|player)\W+({_NUMBERS})\b|\b({_NUMBERS})\W+(jersey|bib)\b"
# A letter that may be written on something: "the plane with a W". Not that of a T-shirt, an M&M or "MAN ' S HAND", and
# "A" and "I" only within an expression in lower case.
_LETTER = re.compile(r"(?<![\w'’&])(?<!['’] )[B-HJ-Z](?![\w'’&])(?!\W?(?i:shirt))|(?<=[a-z] )[AI](?![\w'’])")
_TURNING = _words(
    "clockwise counterclockwise anticlockwise east west eastern western northeast northwest southeast southwest"
    " starboard port lefty righty southpaw"
)
# Abbreviations of sides and misspellings of more than one edit, which are refused.
_ALMOST = _words("l r lt rt lh rh lhs rhs rgt rht ght rit igt rihg rite lite")
# English words within one edit of a side that occur in descriptions. Others that a word list has, such as "let" and
# "fight", are more often a misspelt side: "chair bottom let", "far fight bottom fridge".
_ORDINARY = _words(
    "bright brighter brightest eight fighter light lighter lightest lift lifter loft might night sight tight tighter"
)
# Words that begin or end as a misspelt side would without a space beside it: "onrihgt", "laftman".
_ORDINARY_LONGER = _words("leather leathery lettuce straight overnight freight fighting starlight")
# Counted from the left unless a side is named.
_ORDINALS = _words(
    "first second third fourth fifth sixth seventh eighth ninth tenth last 1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th"
)
# Not an origin of counting: a side of a body ("his left hand"), or a direction ("right facing").
_BODY = _OF_BODIES | _words("hands arms legs shoulders knees elbows wrists ankles ears eyes paws")
_FACING = _words("facing looking turned turning pointing leaning heading")
_SIDES_OF_IMAGES = _words("side corner end part edge row column")
_EXTREMES = _words("the far furthest very extreme upper lower top bottom front back")
# Signs of writing ('"' and "#"), clock positions, shapes named by a letter, and the sides of a car.
_NEVER = re.compile(
    r"[\"#“”]|o\W*clock|clock\W*position|\b[a-z]\W*shaped?\b|(driver|passenger)\W*s?\W*side|" + _NUMBERED,
    re.IGNORECASE,
)
_HARMLESS = re.compile(r"(up|b)right\w*|leftovers?")


def _edits(word: str) -> set[str]:
    """Return all strings within one edit: a letter inserted, left out, replaced, or exchanged with its neighbour."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    parts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    return (
        {a + letter + b for a, b in parts for letter in letters}
        | {a + letter + b[1:] for a, b in parts for letter in letters if b}
        | _shortened_and_swapped(word)
    )


def _shortened_and_swapped(word: str) -> set[str]:
    parts = [(word[:i], word[i:]) for i in range(len(word))]
    return {a + b[1:] for a, b in parts} | {a + b[1] + b[0] + b[2:] for a, b in parts if len(b) > 1}


_WRITTEN = frozenset(side + ending for side in _SIDES for ending in _ENDINGS)
_MISSPELT = frozenset().union(*map(_edits, _WRITTEN)) - _WRITTEN - _ORDINARY
# Without the short forms with which many words begin or end: "flight", "tallest", "excellent", "outlet", "collect".
_GLUED = tuple(
    form
    for form in frozenset().union(*map(_edits, _SIDES)) - _WRITTEN - _ORDINARY - {"ight", "lest", "lent", "lect"}
    if len(form) > 3
)
# Long and odd enough to be recognized inside a word and across a space: "plelft", "rihg tpurple".
_ODD = {form for side in _SIDES for form in _shortened_and_swapped(side)} - {"let", "ight", "eft", "lef", "righ"}
_ODD_INSIDE = re.compile(rf"({'|'.join(sorted(_ODD))})")


def mirror_expression(expression: str) -> str | None:
    """Return the expression with left and right exchanged, or None if it might be false for the mirrored image."""
    is_foreign = any(character.isalpha() and not character.isascii() for character in expression)
    if is_foreign or _NEVER.search(expression) or _LETTER.search(expression):
        return None
    found = list(_TOKEN.finditer(expression))
    words = [match.group().lower() for match in found]
    if not _WRITING.isdisjoint(words) or not _TURNING.isdisjoint(words) or _has_misspelt_side(words):
        return None
    if any(any(map(str.isdigit, word)) and word not in _ORDINALS for word in words):
        return None

    mirrored, copied, sides = "", 0, 0
    for i, (match, word) in enumerate(zip(found, words, strict=True)):
        if not ("left" in word or "right" in word) or _HARMLESS.fullmatch(word):
            continue
        compound = _COMPOUND.fullmatch(word)
        if compound is None or (not compound[2] and not _is_a_side(words, i)):
            return None
        side = compound[1]
        written = match.group()[: len(side)]
        mirrored += expression[copied : match.start()] + _in_the_case_of(written, _SIDES[side])
        copied, sides = match.start() + len(side), sides + _is_an_origin(words, i)
    if not sides and not _ORDINALS.isdisjoint(words):
        return None
    return mirrored + expression[copied:]


def _has_misspelt_side(words: list[str]) -> bool:
    """Return whether a word, or two of them with the space between them lost or moved, may be a misspelt side."""
    if any(word in _ALMOST or _is_misspelt(word) for word in words):
        return True
    for first, second in pairwise(words):
        joined = first + second
        if _WRITTEN.isdisjoint((first, second)) and (
            joined in _MISSPELT
            or joined in _WRITTEN
            or any(joined.startswith(form) and len(first) < len(form) for form in _ODD)
            or any(joined.endswith(form) and len(second) < len(form) for form in _ODD)
        ):
            return True
    return False


def _is_misspelt(word: str) -> bool:
    if word in _MISSPELT or _ODD_INSIDE.search(word):
        return True
    if len(word) < 6 or "left" in word or "right" in word or word in _ORDINARY or word in _ORDINARY_LONGER:
        return False
    return word.startswith(_GLUED) or word.endswith(_GLUED)


def _is_a_side(words: list[str], i: int) -> bool:
    """Return whether words[i], "left" or "right", certainly means a side."""
    before, after = (words[i - 1] if i else ""), (words[i + 1] if i + 1 < len(words) else "")
    if after in _NEVER_AFTER or words[i + 1 : i + 3] in (["side", "up"], ["of", "way"]):
        return False
    if after in _SIDE_NOUNS or before in _BEFORE or (before == "the" and i >= 2 and words[i - 2] in _BEFORE_THE):
        return True
    if words[i + 2 : i + 3] == ["for"]:  # the right person for the job
        return False
    may_be_adverb = after in _ADVERB_AFTER or words[i + 1 : i + 3] in (["back", "at"], ["back", "to"])
    if before in ("and", "or", "not") and i >= 2 and words[i - 2] in _SIDES:
        return not may_be_adverb and _is_a_side(words, i - 2)
    if not may_be_adverb and (i == 0 or before in _BEFORE_UNLESS_ADVERB):
        return True
    may_remain = not _REMAINING.isdisjoint(words[:i]) or (before, words[i]) in _REMAINING_PAIRS
    ends = i <= _FEW and not after.isalnum()
    return not may_remain and (ends or after == "of" or (before in _ORDINALS and not may_be_adverb))


def _is_an_origin(words: list[str], i: int) -> bool:
    """Return whether objects with an ordinal are certainly counted from the side words[i].

    They are in "from the left", "second row left", "on the left side" and "second to the left of the tree"; they may
    not be in "looking left", "his left hand" and "left of the second".
    """
    ending = [word for word in ("hand", "handed") if words[i].endswith(word)]
    before = [word for word in words[:i] if word not in _EXTREMES]
    after = [*ending, *words[i + 1 :]]
    of_image = not _SIDES_OF_IMAGES.isdisjoint(after[:1] if after[:1] != ["hand"] else after[:2])
    if any(word == "the" and later in _ORDINALS for word, later in pairwise(after)):
        return False  # beside "the second"
    if of_image or after[:1] == ["of"]:
        return True
    if not _BODY.isdisjoint(after[:1]) or not before:
        return False
    follows_ordinal = not _ORDINALS.isdisjoint(before[-2:]) and _FACING.isdisjoint(after[:1])
    return before[-1] in ("from", "on", "at", "in") or follows_ordinal


def _in_the_case_of(written: str, word: str) -> str:
    if written.isupper():
        return word.upper()
    return word.capitalize() if written[0].isupper() else word
