"""Entities of tagged words, and how answers to them are counted.

Tags are `B-PER`, `I-PER`, `O` (IOB2), or with `E-`, `S-` (IOBES; `L-`, `U-` in BILOU).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

Tags: TypeAlias = Sequence[str]  # of the words of one row
Counts: TypeAlias = tuple[int, int, int]  # right, given and wanted
Entity: TypeAlias = tuple[str, int, int]  # its type, its first word, and the one after its last
ENDING = {"E": "E", "L": "E", "S": "S", "U": "S"}  # prefixes of IOBES, and BILOU's for the same
PREFIXES = ("B", "I", *ENDING)


def split(tag: str) -> tuple[str, str]:
    """Prefix and type of a tag; ("O", "") for one without a prefix."""
    prefix, dash, kind = tag.partition("-")
    return (ENDING.get(prefix, prefix), kind) if dash and prefix in PREFIXES else ("O", "")


def marks_ends(rows: Sequence[Tags]) -> bool:
    """Whether the tags mark an entity's end: IOBES or BILOU, not IOB2."""
    return any(split(tag)[0] in "ES" for tag in {tag for tags in rows for tag in tags})


def entities(tags: Tags, ends: bool = False) -> set[Entity]:
    """The well-formed entities: B, then I of the same type; with `ends` also S, or B, I…, E.

    An I that follows no word of its entity begins none (seqeval's mode="strict").
    """
    found: set[Entity] = set()
    kind, begin = "", -1  # of the open entity; none at -1
    for i, tag in enumerate([*tags, "O"]):
        prefix, own = split(tag)
        goes_on = begin >= 0 and prefix in "IE" and own == kind
        if goes_on and prefix == "E":
            found.add((kind, begin, i + 1))
            begin = -1
        elif not goes_on:
            if begin >= 0 and not ends:
                found.add((kind, begin, i))
            kind, begin = own, i if prefix == "B" else -1
            if prefix == "S":
                found.add((kind, i, i + 1))
    return found


def chunks(tags: Tags) -> set[Entity]:
    """Entities as conlleval and seqeval's default read them: an I or E of another type than the
    word before begins one, too, and the end of a run ends one."""
    found: set[Entity] = set()
    kind, begin = "", -1
    for i, tag in enumerate([*tags, "O"]):
        prefix, own = split(tag)
        if begin >= 0 and (prefix in "BSO" or own != kind):
            found.add((kind, begin, i))
            begin = -1
        if begin < 0 and prefix != "O":
            kind, begin = own, i
        if begin >= 0 and prefix in "ES":
            found.add((kind, begin, i + 1))
            begin = -1
    return found


def counts_by_type(true: Sequence[Tags], predicted: Sequence[Tags]) -> dict[str, Counts]:
    """Of each type of entity (of each tag, where no tag begins one) right, given and wanted."""
    ends = marks_ends(true)
    plain = all(split(tag)[0] == "O" for tag in {tag for tags in true for tag in tags})

    def of(rows: Sequence[Tags]) -> set[tuple[str, int, int, int]]:
        """Type, row, first word and the one after the last."""
        if plain:
            return {(tag, i, w, w + 1) for i, tags in enumerate(rows) for w, tag in enumerate(tags)}
        return {(k, i, a, b) for i, tags in enumerate(rows) for k, a, b in entities(tags, ends)}

    wanted, given = of(true), of(predicted)
    counts = [Counter(one[0] for one in each) for each in (wanted & given, given, wanted)]
    right, said, asked = counts
    return {kind: (right[kind], said[kind], asked[kind]) for kind in sorted({*said, *asked})}


def marked(words: Sequence[str], tags: Tags) -> str:
    """A row's words with its entities in brackets, as `[PER Ada Falk] lives in [LOC Rome]`; of
    tags without entities each word with its own, as `sleeps/VERB`."""
    pieces = list(words)
    if not any(split(tag)[0] != "O" for tag in tags):
        named = zip(words, tags, strict=True)
        return " ".join(word if tag == "O" else f"{word}/{tag}" for word, tag in named)
    for kind, begin, end in chunks(tags):
        pieces[begin] = f"[{kind} {pieces[begin]}"
        pieces[end - 1] += "]"
    return " ".join(pieces)
