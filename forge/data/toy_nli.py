"""The embedded default task: natural language inference in MNLI's format, computed, not downloaded.

A sentence of the small grammar says how many individuals one set has: "every small dog runs"
says that the small dogs that do not run number 0, "at least two dogs run" that the dogs that run
number 2 or more. Sets are bit masks over the types of individual that the ontology allows, in
which a dog is an animal, whoever sprints runs, and nobody both moves and rests.

A label is computed from these sets alone. Both sentences presuppose that somebody fits their
subject, so "every dog runs" does contradict "no dog runs". Among the worlds where that holds:

* contradiction: no world makes both sentences true,
* entailment: no world makes the premise true and the hypothesis false,
* neutral: both kinds of world exist.

Whether such a world exists is decided exactly, for worlds of any size (see `possible`).

So that neither sentence tells the label by itself, pairs come in blocks of four premises and
four hypotheses, in which each of the eight sentences has each label once. A label depends on how
the words are related, not on which they are, so the blocks are found once, for slots such as
n0 > n1 > n2, and then worded from many scenes, such as animal > dog > poodle.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import chain, islice, product
from typing import TYPE_CHECKING, NamedTuple

from forge.data.label_noise import another, with_noise
from forge.errors import UserError

if TYPE_CHECKING:
    import datasets

LABELS = ("entailment", "neutral", "contradiction")
ENTAILED, NEUTRAL, DENIED = LABELS
COLUMNS = ("premise", "hypothesis", "label")

# "a>b" says that every b is an a, "a c" that no a is a c. Every word is also true of individuals
# that no lower word fits: an animal may be no dog, and somebody may neither move nor rest.
SLOTS = ("n0>n1>n2", "v0>v1>v2 r0", "t0>t1 c0")
NOUNS, VERBS, TRAITS = (slots.replace(">", " ").split() for slots in SLOTS)
SCENES = (
    "animal>dog>poodle, animal>dog>beagle, animal>bird>parrot, animal>bird>owl, "
    "person>child>boy, person>child>girl, person>adult>man, person>adult>woman",
    "move>run>sprint rest, move>run>jog rest, move>walk>stroll rest, "
    "rest>sleep>nap move, rest>sleep>doze move, rest>sit>lounge move",
    "small>tiny large, large>huge small, happy>joyful sad, sad>gloomy happy, "
    "calm>serene angry, angry>furious calm",
)
PLURALS = {"person": "people", "child": "children", "man": "men", "woman": "women"}

SENTENCES = 350
# The blocks of a group are worded from every scene before the next group is used: the more
# often a construction returns in other words, the sooner it is learned.
GROUP = 50
BLOCK = 12
MANY = 1_000_000

Range = tuple[int, int]
Pair = tuple[str, str, str]


# Text, is the noun plural, does it count those whom the predicate does not fit, and how many.
QUANTIFIERS: tuple[tuple[str, bool, bool, Range], ...] = (
    ("every", False, True, (0, 0)),
    ("not every", False, True, (1, MANY)),
    ("some", False, False, (1, MANY)),
    ("no", False, False, (0, 0)),
    ("at least two", True, False, (2, MANY)),
    ("at least three", True, False, (3, MANY)),
    ("exactly two", True, False, (2, 2)),
    ("fewer than three", True, False, (0, 2)),
)


class Sentence(NamedTuple):
    text: str
    subject: int
    counted: int
    range: Range


@cache
def masks() -> dict[str, int]:
    """For each slot the set of the types of individual it is true of; "" is true of all."""
    trees = [[path.split(">") for path in slots.split()] for slots in SLOTS]
    lowest = [[[], *(path[: i + 1] for path in tree for i in range(len(path)))] for tree in trees]
    result: dict[str, int] = defaultdict(int)
    for number, individual in enumerate(product(*lowest)):
        for slot in ["", *chain(*individual)]:
            result[slot] |= 1 << number
    return dict(result)


def mask(slot: str, negated: bool = False) -> int:
    return masks()[slot] ^ (masks()[""] if negated else 0)


def completable(inhabitable: list[int], witnesses: tuple[int, ...], x: Range, y: Range) -> bool:
    """Whether further individuals bring the witnesses to `x` in X and `y` in Y."""
    in_x = sum(region in (0, 1) for region in witnesses)
    in_y = sum(region in (0, 2) for region in witnesses)
    shared_most = min(x[1] - in_x, y[1] - in_y, MANY if 0 in inhabitable else 0)
    shared_by_x = 0 if 1 in inhabitable else x[0] - in_x
    shared_by_y = 0 if 2 in inhabitable else y[0] - in_y
    return max(0, shared_by_x, shared_by_y) <= shared_most


def possible(regions: tuple[bool, ...], x: Range, y: Range) -> bool:
    """Whether some world has `x` individuals in X and `y` in Y, and both subjects inhabited.

    `regions` says of each of the four regions (X and Y, X only, Y only, neither) whether it holds
    any type of individual, and any that fits the first subject, the second one, both. A world
    is one or two witnesses, who fit the subjects, and any further individuals.
    """
    fitting = [[r for r in range(4) if regions[4 * r + column]] for column in range(4)]
    inhabitable, first, second, both = fitting
    witnesses = [*((r,) for r in both), *product(first, second)]
    return any(completable(inhabitable, w, x, y) for w in witnesses)


@cache
def verdict(regions: tuple[bool, ...], x: Range, y: Range) -> str:
    true = possible(regions, x, y)
    otherwise = [r for r in ((0, y[0] - 1), (y[1] + 1, MANY)) if r[0] <= r[1]]
    false = any(possible(regions, x, r) for r in otherwise)
    names = {(True, False): ENTAILED, (True, True): NEUTRAL, (False, True): DENIED}
    return names.get((true, false), "")


def label(premise: Sentence, hypothesis: Sentence) -> str:
    """The label; "" where the premise rules out that anybody fits the hypothesis's subject."""
    (_, a, x, x_range), (_, b, y, y_range) = premise, hypothesis
    parts = (x & y, x & ~y, y & ~x, masks()[""] & ~(x | y))
    regions = tuple([part & s != 0 for part in parts for s in (-1, a, b, a & b)])
    return verdict(regions, x_range, y_range)


def verb_phrase(slot: str, plural: bool, negated: bool) -> str:
    """The predicate as a template: {v0} stands for a word of the scene, {v0s} for it in -s."""
    if slot in TRAITS:
        return f"{'are' if plural else 'is'}{' not' * negated} {{{slot}}}"
    if negated:
        return f"{'do' if plural else 'does'} not {{{slot}}}"
    return f"{{{slot}}}" if plural else f"{{{slot}s}}"


def noun_phrase(rng: random.Random, modifier: str, plural: bool) -> tuple[str, int]:
    """A random subject as a template, and its set."""
    noun = rng.choice(NOUNS)
    text, who = f"{{{noun}{'s' * plural}}}", mask(noun)
    if rng.random() < 0.4:
        return text, who
    if modifier in TRAITS and rng.random() < 0.6:
        return f"{{{modifier}}} {text}", who & mask(modifier)
    negated = rng.random() < 0.15
    return f"{text} that {verb_phrase(modifier, plural, negated)}", who & mask(modifier, negated)


def sentence(rng: random.Random) -> Sentence | None:
    """A random sentence; None if it is true of every world or of none."""
    quantifier, plural, exceptions, number = rng.choice(QUANTIFIERS)
    modifiers, predicates = (TRAITS, VERBS) if rng.random() < 0.8 else (VERBS, TRAITS)
    predicate = rng.choice(predicates)
    # "every dog does not run" has two readings; those that count from 1 up have only one.
    negated = not exceptions and number[0] > 0 and rng.random() < 0.3
    text, who = noun_phrase(rng, rng.choice(modifiers), plural)
    text = f"{quantifier} {text} {verb_phrase(predicate, plural, negated)}"
    counted = who & mask(predicate, negated != exceptions)
    return Sentence(text, who, counted, number) if 0 < counted < who else None


def squares(rng: random.Random, table: list[list[str]]) -> Iterator[tuple[int, int, int, int]]:
    """p, h, q, k: p entails h and denies k, q entails k and denies h; struck from the table."""
    indices = range(len(table))
    entailed = [[h for h in indices if row[h] == ENTAILED] for row in table]
    deniers = [[p for p in indices if table[p][h] == DENIED] for h in indices]
    entailments = [(p, h) for p in indices for h in entailed[p]]
    for p, h in rng.sample(entailments, len(entailments)):
        free = [(q, k) for q in deniers[h] if table[q][h] for k in entailed[q] if table[q][k]]
        others = [(q, k) for q, k in free if table[p][k] == DENIED]
        if table[p][h] and others:
            q, k = rng.choice(others)
            table[p][h] = table[p][k] = table[q][h] = table[q][k] = ""
            yield p, h, q, k


def blocks(rng: random.Random) -> Iterator[list[Pair]]:
    """Two squares each, with neutral pairs between them, as templates; no pair comes twice."""
    drawn = [s for s in (sentence(rng) for _ in range(6 * SENTENCES)) if s]
    pool = list({s.text: s for s in drawn}.values())[:SENTENCES]
    table = [[label(p, h) if p != h else "" for h in pool] for p in pool]
    waiting = list(squares(rng, table))
    while waiting:
        p, h, q, k = waiting.pop()
        for r, i, s, j in waiting:
            across = ((r, h), (s, k), (p, i), (q, j))
            if all(table[x][y] == NEUTRAL for x, y in across):
                waiting.remove((r, i, s, j))
                for x, y in across:
                    table[x][y] = ""
                chosen = (((p, r, q), h), ((q, s, p), k), ((r, p, s), i), ((s, q, r), j))
                named = [(pool[y].text, zip(xs, LABELS, strict=True)) for xs, y in chosen]
                yield [
                    (pool[x].text, text, name) for text, premises in named for x, name in premises
                ]
                break


def scenes() -> list[dict[str, str]]:
    """The words for the slots, and under the slot's name with an s their forms in -s."""
    options = [slots.split(", ") for slots in SCENES]
    choices = [" ".join(choice).replace(">", " ").split() for choice in product(*options)]
    filled = [dict(zip(NOUNS + VERBS + TRAITS, words, strict=True)) for words in choices]
    return [w | {f"{slot}s": PLURALS.get(w[slot], f"{w[slot]}s") for slot in w} for w in filled]


def pairs(rng: random.Random) -> Iterator[Pair]:
    """Blocks in scenes, but for those that would repeat a pair; three at a time on a hypothesis."""
    all_blocks = list(blocks(rng))
    groups = [all_blocks[i : i + GROUP] for i in range(0, len(all_blocks), GROUP)]
    units = [rng.sample(u, len(u)) for g in groups for u in [list(product(g, scenes()))]]
    used: set[tuple[str, str]] = set()
    for block, scene in chain(*units):
        worded = [(p.format_map(scene), h.format_map(scene), name) for p, h, name in block]
        texts = {(p, h) for p, h, _ in worded}
        if len(texts) == len(worded) and used.isdisjoint(texts):
            used |= texts
            yield from worded


def nli(
    *,
    train: int = 20_000,
    validation: int = 2_000,
    seed: int = 0,
    contradictions: float = 1.0,
    label_noise: float = 0.0,
) -> dict[str, datasets.Dataset]:
    """The splits, each rounded down to a multiple of 3, so that each hypothesis has each label.

    `contradictions` is the share of that label's pairs that is kept: below 1 it is the rare one;
    `label_noise` the share of train's labels that are replaced by another one.
    """
    import datasets

    rng = random.Random(seed)
    train, validation = train - train % 3, validation - validation % 3
    rows = list(islice(pairs(rng), train + validation))
    if len(rows) < train + validation:
        raise UserError(f"the grammar gives {len(rows)} pairs, not {train} + {validation}")
    whole = [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
    rows = list(chain(*rng.sample(whole, len(whole))))
    splits, kept = {}, random.Random(seed)
    for name, part in {"train": rows[:train], "validation": rows[train:]}.items():
        rng.shuffle(part)
        part = [row for row in part if row[2] != DENIED or kept.random() < contradictions]
        columns = {c: [row[i] for row in part] for i, c in enumerate(COLUMNS)}
        noise = label_noise if name == "train" else 0.0
        columns["label"] = with_noise(columns["label"], noise, another(LABELS), seed)
        splits[name] = datasets.Dataset.from_dict(columns)
    return splits
