"""Mirrored expressions: left and right exchanged, or a refusal if the result might be false.

Exchanging the words is the easy part. The hard parts are to recognise uses of "left" and "right" that are not sides
("the truck right behind", "the last slice left"), and other things that a mirror changes: writing, numbers, clock
positions, and an order that is counted from the left without saying so ("the third giraffe"). Anything uncertain is
refused, since a refused expression costs a mirrored view, while a wrong one teaches the opposite.

The rules were made by reading 14,156 real expressions (9,106 of RefCOCOg umd test, 5,000 of google val, 50 of RefCOCO
testA). 1,664 have a word that begins with left or right. 1,585 of these are mirrored; each such word was read in
context, and none was found wrong; 79 are refused. Of the other expressions 485 are refused (table in docs/training.md).
"""

from __future__ import annotations

import re

_SIDES = {"left": "right", "right": "left"}
_COMPOUND = re.compile(r"(left|right)(most|hand|handed|side|sided|ward|wards|er)?")
# Words and sentence boundaries; apostrophes and hyphens only separate words ("man's", "left-hand").
_TOKEN = re.compile(r"[a-z0-9]+|[.,;:!?]", re.IGNORECASE)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# "left" or "right" is certainly a side with one of these after it,
_SIDE_NOUNS = _words(
    "side sides sided hand handed most corner corners half end edge part portion quarter third section picture pictures"
    " pic image photo photograph frame panel screen arm leg foot feet shoulder knee elbow wrist ankle thumb ear eye paw"
    " tusk wing hip thigh cheek breast calf"
)
# or before it,
_BEFORE = _words(
    "on to from far furthest farthest farther further upper lower top bottom front back extreme very outer outermost"
    " rear most"
)
# or a possessive or a direction before it, unless it may be an adverb ("its right behind"),
_BEFORE_UNLESS_ADVERB = _words(
    "the his her its their my your our whose facing faces faced pointing points looking looks turned turning heading"
    " headed leaning leans walking moving going toward towards"
)
# or "the" before it and one of these before "the".
_BEFORE_THE = _words("on to at in from toward towards facing")

# Words after which "right" is an adverb ("right behind") or "left" a verb ("left on the plate").
_ADVERB_AFTER = _words(
    "behind beind next beside besides above below beneath under underneath in at on by near close against between"
    " across after before over up down out outside inside there here where through around along alongside beyond past"
    " off onto into away as to alone untouched unattended uneaten for with is are was not"
)
# Words that never follow a side: leftovers, and "right" as correct or immediate.
_NEVER_AFTER = _words(
    "over overs way ways angle angles size sized kind type amount direction thing time place spot height position"
    " moment now away turn"
)

# Writing is mirrored too, and so are rotations and compass directions.
_WRITING = _words(
    "says say saying said read reads reading written writing writings writes word words wording worded letter letters"
    " lettered lettering text texts label labels labeled labelled labeling logo logos spell spells spelled spelling"
    " printed print prints initial initials number numbers numbered numeral numerals digit digits character characters"
    " alphabet named name names titled title caption license slogan brand"
)
_TURNING = _words(
    "clockwise counterclockwise anticlockwise east west eastern western northeast northwest southeast southwest"
    " starboard port lefty righty southpaw"
)
# Abbreviations and misspellings of sides, which are refused.
_ALMOST = _words(
    "l r lt rt lh rh lhs rhs lft lef letf leftt leff lefft lesft eft rgt rht righ rigt rigth rihgt rght rite ritght"
)
# Counted from the left unless a side is named.
_ORDINALS = _words(
    "first second third fourth fifth sixth seventh eighth ninth tenth last 1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th"
)
# Signs of writing ('"' and "#"), clock positions, shapes named by a letter, and the sides of a car.
_NEVER = re.compile(
    r"[\"#“”]|o\W*clock|clock\W*position|\b[a-z]\W*shaped?\b|(driver|passenger)\W*s?\W*side", re.IGNORECASE
)
_HARMLESS = re.compile(r"(up|b)right\w*|leftovers?")


def mirror_expression(expression: str) -> str | None:
    """Return the expression with left and right exchanged, or None if it might be false for the mirrored image."""
    if _NEVER.search(expression):
        return None
    found = list(_TOKEN.finditer(expression))
    words = [match.group().lower() for match in found]
    if not _WRITING.isdisjoint(words) or not _TURNING.isdisjoint(words) or not _ALMOST.isdisjoint(words):
        return None
    if any(any(map(str.isdigit, word)) and word not in _ORDINALS for word in words):
        return None

    mirrored, copied, sides = "", 0, 0
    for i, (match, word) in enumerate(zip(found, words, strict=True)):
        if not ("left" in word or "right" in word) or _HARMLESS.fullmatch(word):
            continue
        compound = _COMPOUND.fullmatch(word)
        if compound is None or (compound[2] is None and not _is_a_side(words, i)):
            return None
        side = compound[1]
        written = match.group()[: len(side)]
        mirrored += expression[copied : match.start()] + _in_the_case_of(written, _SIDES[side])
        copied, sides = match.start() + len(side), sides + 1
    if not sides and not _ORDINALS.isdisjoint(words):
        return None
    return mirrored + expression[copied:]


def _is_a_side(words: list[str], i: int) -> bool:
    """Return whether words[i], "left" or "right", certainly means a side."""
    before, after = (words[i - 1] if i else ""), (words[i + 1] if i + 1 < len(words) else "")
    if after in _NEVER_AFTER or (after == "side" and words[i + 2 : i + 3] == ["up"]):
        return False
    if after in _SIDE_NOUNS or before in _BEFORE:
        return True
    may_be_adverb = after in _ADVERB_AFTER
    if before == "the" and i >= 2 and words[i - 2] in _BEFORE_THE:
        return True
    if before in ("and", "or", "not") and i >= 2 and words[i - 2] in _SIDES:
        return not may_be_adverb and _is_a_side(words, i - 2)
    return not may_be_adverb and (i == 0 or before in _BEFORE_UNLESS_ADVERB)


def _in_the_case_of(written: str, word: str) -> str:
    if written.isupper():
        return word.upper()
    return word.capitalize() if written[0].isupper() else word
