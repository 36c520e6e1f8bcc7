"""Which tokens the memory is to speak at: the rows that are written, and what each is known by.

The end of a name has nearly the same query in all wordings. A row is written for the last token of
a name that nothing else comes near: no token of ordinary text, of another name, or of a name that
ends alike. Next: train.py.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from memory_layers.learn.cues import Cue
from memory_layers.learn.skeleton import look_up, slots_of
from memory_layers.learn.sources import LearnData

# Distances, as shares of the length of a query. Tokens of other text are hardly ever nearer than
# 0.6, the same name in other wordings hardly ever farther than 0.35.
WIDEST, NARROWEST, JOINED = 0.45, 0.25, 0.4
# The radius as a share of the distance to the nearest of what is to stay as it is, and as a
# multiple of the distance of tokens that the row is taken to know again.
AWAY, AROUND = 0.8, 1.15
# Names that end alike, made up for each token that may be written for; and rows for a text of which
# the name is not known, the further ones as far apart from the rest as this share of the best.
DECOYS, MOST_ROWS, AS_RARE = 2, 3, 0.9
# That are compared with all others at a time.
_CENTRES = 256

# Of a cluster: the name, how far at its end the token stands, and the token, which is another one
# where a text begins with the name; its complement if nothing like the others. Without a name: "",
# the number of the first cue, 0.
_Key = tuple[str, int, int]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is going to be written.

    Attributes:
        slots: int64 [R], ascending.
        queries: [R, Q], what the rows are known by.
        radii: [R].
        values: int64 [R]. Rows of the same number stand for the same and have one value.
        of_group: For each group, its rows.
        vague: Groups with no token that nothing else comes near. They have a row all the same.
    """

    slots: Tensor
    queries: Tensor
    radii: Tensor
    values: Tensor
    of_group: dict[int, tuple[int, ...]]
    vague: tuple[int, ...]


@dataclass
class Cluster:
    """Tokens that may share a row.

    Attributes:
        cues: Where they stand.
        queries: Theirs, [n, Q].
        others: Queries that the row must not be read by, [Q] each.
    """

    cues: list[Cue]
    queries: Tensor
    others: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class _Option:
    """A cluster as a row.

    Attributes:
        known: Examples that the row knows again. None, if something else comes near.
        last: How far at the end of the name or text the nearest of its tokens stands.
        apart: Distance to the nearest of what is to stay, as a share of the length of the query.
        row: Number of the cluster.
        radius: For the row.
    """

    known: frozenset[int]
    last: int
    apart: float
    row: int
    radius: float


def plan_rows(
    model: PreTrainedModel,
    data: LearnData,
    cues: Sequence[Cue],
    ordinary: Tensor,
    words: Tensor,
    taken: Tensor,
    seed: int,
) -> Plan:
    """Decide which rows are written.

    Args:
        model: With memory.
        data: What is taught.
        cues: Tokens that the memory may speak at.
        ordinary: [n, Q], queries of tokens at which it must not.
        words: int64 [n], ordinary tokens, to make up names of.
        taken: int64, slots that have been written before. They are left alone.
        seed: Of made-up names.
    """
    if not cues:
        empty = torch.empty(0, dtype=torch.int64)
        return Plan(empty, ordinary[:0], ordinary[:0, 0], empty, {}, ())
    texts = [torch.from_numpy(example.ids).long() for example in data.examples]
    queries = look_up(model, texts)
    clusters = _join(data, cues, queries)
    _add_decoys(model, data, clusters, words, seed)
    centres = torch.stack([cluster.queries.mean(0) for cluster in clusters.values()])
    nearest = _nearest(centres, list(clusters), ordinary)
    options: dict[int, list[_Option]] = defaultdict(list)
    for row, cluster in enumerate(clusters.values()):
        key, size = centres[row], float(centres[row].norm())
        away = min([nearest[row], *(float((other - key).norm()) for other in cluster.others)])
        radius = min(WIDEST * size, AWAY * away)
        near = AROUND * (cluster.queries - key).norm(dim=1) <= radius
        if radius < NARROWEST * size:
            near[:], radius = False, NARROWEST * size
        pairs = zip(cluster.cues, near.tolist(), strict=True)
        known = frozenset(cue.example for cue, is_near in pairs if is_near)
        last = min(cue.last for cue in cluster.cues)
        option = _Option(known, last, away / size, row, radius)
        for group in {data.examples[cue.example].group for cue in cluster.cues}:
            options[group].append(option)
    return _choose(model, data, list(clusters), options, centres, taken)


def _nearest(centres: Tensor, keys: Sequence[_Key], ordinary: Tensor) -> list[float]:
    """Return how far each centre is from what it must not be taken for: text and other names."""
    numbers = {name: n for n, name in enumerate(dict.fromkeys(name for name, *_ in keys))}
    # Tokens without a name stand for themselves alone.
    names = torch.tensor([numbers[name] if name else -1 - n for n, (name, *_) in enumerate(keys)])
    found = []
    for part in torch.arange(len(centres)).split(_CENTRES):
        others = torch.cdist(centres[part], centres)
        others[names[part, None] == names] = math.inf
        near = others.min(1).values
        if len(ordinary):
            near = near.minimum(torch.cdist(centres[part], ordinary).min(1).values)
        found.append(torch.where(near.isfinite(), near, centres[part].norm(dim=1)))
    return torch.cat(found).tolist()


def _choose(
    model: PreTrainedModel,
    data: LearnData,
    keys: Sequence[_Key],
    options: dict[int, list[_Option]],
    centres: Tensor,
    taken: Tensor,
) -> Plan:
    radii: dict[int, float] = {}
    chosen: dict[int, list[int]] = {}
    vague = []
    rows_of: Counter[int] = Counter()
    members: dict[int, set[int]] = defaultdict(set)
    for n, example in enumerate(data.examples):
        members[example.group].add(n)
    for group, found in sorted(options.items()):
        named, is_asked = bool(data.groups[group].subject), bool(data.groups[group].answer)
        # The end of a name has all of it before it. Elsewhere the rarest tokens are most like one.
        best = sorted(found, key=lambda o: (o.last if named else -o.apart, o.row))
        taken_up = []
        told_apart: set[int] = set()
        for option in best:
            known = option.known & members[group]
            most = 1 if named else MOST_ROWS
            is_poor = is_asked and not named and option.apart < AS_RARE * best[0].apart
            # A row that others read too does not tell which of them is meant.
            if any(rows_of[n] < most for n in (known - told_apart if is_poor else known)):
                taken_up.append(option)
                rows_of.update(known)
                told_apart |= known if known == option.known else set()
        if not taken_up:
            vague.append(group)
            taken_up = best[:1]
            rows_of.update(members[group])
        chosen[group] = [option.row for option in taken_up]
        radii |= {option.row: option.radius for option in taken_up}
    used, slot_of = {int(slot) for slot in taken}, {}
    for row, candidates in zip(radii, slots_of(model, centres[list(radii)]).tolist(), strict=True):
        free = [slot for slot in candidates if slot not in used]
        # As rare as a row whose query finds none but slots that are taken.
        slot_of[row] = free[0] if free else next(s for s in range(10**9) if s not in used)
        used.add(slot_of[row])
    order = sorted(radii, key=lambda row: slot_of[row])
    number = {row: n for n, row in enumerate(order)}
    return Plan(
        torch.tensor([slot_of[row] for row in order], dtype=torch.int64),
        centres[order],
        torch.tensor([radii[row] for row in order]),
        _values_of(data, keys, chosen, order),
        {group: tuple(number[row] for row in rows) for group, rows in chosen.items()},
        tuple(vague),
    )


def _values_of(
    data: LearnData,
    keys: Sequence[_Key],
    chosen: Mapping[int, Sequence[int]],
    order: Sequence[int],
) -> Tensor:
    """Return for each row the first one that has the same value as it."""
    groups: dict[int, list[int]] = defaultdict(list)
    for group, rows in chosen.items():
        for row in rows:
            groups[row].append(group)
    first: dict[tuple[str, int], int] = {}
    found = []
    for n, row in enumerate(order):
        name, (group, *others) = keys[row][0], groups[row]
        if name:
            found.append(first.setdefault((name, -1), n))
        elif others or not data.groups[group].answer:
            # What several prompts have in common cannot say what only one of them means, and of a
            # running text each row says what follows on it.
            found.append(n)
        else:
            found.append(first.setdefault(("", group), n))
    return torch.tensor(found)


def _join(data: LearnData, cues: Sequence[Cue], queries: Sequence[Tensor]) -> dict[_Key, Cluster]:
    """Put tokens together that stand for the same: those of a name, or those that are near."""
    clusters: dict[_Key, list[Cue]] = defaultdict(list)
    found = _gathered([queries[cue.example][cue.place] for cue in cues if not cue.name])
    for cue in cues:
        clusters[_key_of(cue, data) if cue.name else ("", next(found), 0)].append(cue)
    for (name, last, token), same in list(clusters.items()):
        of = torch.stack([queries[cue.example][cue.place] for cue in same])
        centre = of.mean(0)
        far = AROUND * (of - centre).norm(dim=1) > WIDEST * centre.norm()
        if name and far.any() and not far.all():
            # At the beginning of a text, where nothing stands before the name.
            parts = {token: ~far, ~token: far}
            for key, part in parts.items():
                clusters[name, last, key] = [same[n] for n in part.nonzero()[:, 0].tolist()]
    return {
        key: Cluster(same, torch.stack([queries[cue.example][cue.place] for cue in same]))
        for key, same in clusters.items()
    }


def _key_of(cue: Cue, data: LearnData) -> _Key:
    return cue.name, cue.last, int(data.examples[cue.example].ids[cue.place])


def _gathered(queries: Sequence[Tensor]) -> Iterator[int]:
    """Yield for each query the number of the first one that it is near, or its own."""
    firsts: list[int] = []
    for low in range(0, len(queries), _CENTRES):
        some = torch.stack([*queries[low : low + _CENTRES]])
        near, within = JOINED * some.norm(dim=1), torch.cdist(some, some)
        before: list[tuple[float, int]] = [(math.inf, -1)] * len(some)
        if firsts:
            known = torch.stack([queries[n] for n in firsts])
            distances, places = torch.cdist(some, known).min(1)
            pairs = zip(distances.tolist(), places.tolist(), strict=True)
            before = [(distance, firsts[place]) for distance, place in pairs]
        new: list[int] = []
        for n, best in enumerate(before):
            distance, first = min([best, *((float(within[n, m]), low + m) for m in new)])
            if distance >= float(near[n]):
                new.append(n)
                first = low + n
            yield first
        firsts += [low + n for n in new]


def _add_decoys(
    model: PreTrainedModel,
    data: LearnData,
    clusters: dict[_Key, Cluster],
    words: Tensor,
    seed: int,
) -> None:
    """Give clusters queries of the same token at the end of other names."""
    draw = random.Random(seed)  # noqa: S311
    made: list[tuple[Cluster, Tensor]] = []
    for cluster in clusters.values():
        cue = cluster.cues[0]
        # The first token of a name has nothing before it that could be another.
        if not cue.name or cue.place == cue.first:
            continue
        for _ in range(DECOYS):
            ids = torch.from_numpy(data.examples[cue.example].ids[: cue.place + 1]).long()
            count = cue.place - cue.first
            start = draw.randrange(len(words) - count)
            ids[cue.first : cue.place] = words[start : start + count]
            made.append((cluster, ids))
    for (cluster, _), found in zip(made, look_up(model, [ids for _, ids in made]), strict=True):
        cluster.others.append(found[-1])
