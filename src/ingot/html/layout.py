"""Layered drawings of acyclic graphs: every edge goes down, long ones run straight, and nothing overlaps.

The method of Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical system structures" (IEEE Trans.
SMC 11, 1981): rows by longest path, an order in each row by the barycentre of the neighbours, then coordinates. These are
the least squares distance to the neighbours' mean under the order and the gaps, solved exactly row by row by pooling
adjacent violators (Ayer et al., Ann. Math. Statist. 26, 1955).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

GAP_X, GAP_Y, LANE = 16.0, 30.0, 8.0
"""Room (px) between boxes of a row, between rows, and the width of an edge that passes a row."""
SWEEPS = 12


@dataclass(frozen=True)
class Box:
    """A placed box: centre `x` (px), row, width and height (px)."""

    x: float
    row: int
    width: float
    height: float


@dataclass(frozen=True)
class Edge:
    """From box `source` to box `target`, leaving its bottom at `start` px and meeting the other's top at `end` px.

    lanes: for every row in between, where (x, px) the edge passes it.
    """

    source: int
    target: int
    start: float
    end: float
    lanes: tuple[float, ...]


@dataclass(frozen=True)
class Drawing:
    """Boxes in the order given. tops: y (px) of every row, and below the last the height of the whole; width in px."""

    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    tops: tuple[float, ...]
    width: float


def layered(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]]) -> Drawing:
    """Place boxes of the given (width, height), px. Edges go from a lower to a higher index; repeated ones count once.

    Of the edges into a box the first given is kept straightest.
    Raises ValueError for an edge that does not.
    """
    edges = list(dict.fromkeys(edges))
    if any(source >= target for source, target in edges):
        raise ValueError("edges must go from a lower to a higher index")
    rows = _rows(len(sizes), edges)
    chains, links, lane_rows = _lanes(len(sizes), edges, rows)
    main = {v: (chains[u, v] or (u,))[-1] for u, v in reversed(edges)}
    rows, widths = [*rows, *lane_rows], [*(w for w, _ in sizes), *[LANE] * len(lane_rows)]
    order = _ordered(rows, links)
    xs = _placed(order, widths, links, main, lanes_from=len(sizes))
    left = min((x - w / 2 for x, w in zip(xs, widths)), default=0.0)
    xs = [x - left for x in xs]
    heights = [max((sizes[v][1] for v in row if v < len(sizes)), default=0.0) for row in order]
    tops = [0.0]
    for height in heights:
        tops.append(tops[-1] + height + GAP_Y)
    tops[-1] -= GAP_Y if heights else 0
    ends = _ports(edges, chains, xs, widths)
    return Drawing(tuple(Box(xs[v], rows[v], w, h) for v, (w, h) in enumerate(sizes)),
                   tuple(Edge(u, v, *ends[u, v], tuple(xs[lane] for lane in chains[u, v])) for u, v in edges),
                   tuple(tops), max((x + w / 2 for x, w in zip(xs, widths)), default=0.0))


def _rows(n: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The row of every box: below all it depends on, and near to what uses it where that makes edges shorter."""
    above: dict[int, list[int]] = defaultdict(list)
    below: dict[int, list[int]] = defaultdict(list)
    for u, v in edges:
        above[v].append(u)
        below[u].append(v)
    rows = [0] * n
    for v in range(n):
        rows[v] = max((rows[u] + 1 for u in above[v]), default=0)
    for v in reversed(range(n)):
        if len(below[v]) > len(above[v]):
            rows[v] = min(rows[w] for w in below[v]) - 1
    used = {row: i for i, row in enumerate(sorted(set(rows)))}
    return [used[row] for row in rows]


def _lanes(n: int, edges: Sequence[tuple[int, int]], rows: Sequence[int]
           ) -> tuple[dict[tuple[int, int], tuple[int, ...]], list[tuple[int, int]], list[int]]:
    """Extra places where edges pass rows: one per box and row, shared by all long edges of that box.

    Returns the places each edge passes, the links between neighbouring rows, and the row of every place.
    """
    places: dict[tuple[int, int], int] = {}
    chains: dict[tuple[int, int], tuple[int, ...]] = {}
    links: dict[tuple[int, int], None] = {}
    for u, v in edges:
        chain = [places.setdefault((u, row), n + len(places)) for row in range(rows[u] + 1, rows[v])]
        chains[u, v] = tuple(chain)
        links.update(dict.fromkeys(zip([u, *chain], [*chain, v])))
    return chains, list(links), [row for _, row in places]


def _ordered(rows: Sequence[int], links: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The boxes and lanes of every row from left to right, with few crossings."""
    order: list[list[int]] = [[] for _ in range(max(rows, default=-1) + 1)]
    for v, at in enumerate(rows):
        order[at].append(v)
    up, down = _neighbours(len(rows), links)
    best, fewest = order, _crossings(order, down)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        order = [list(row) for row in order]
        downwards = sweep % 2 == 0
        near = up if downwards else down
        place = {v: i for row in order for i, v in enumerate(row)}
        for row in order if downwards else reversed(order):
            weight = {v: sum(place[w] for w in near[v]) / len(near[v]) if near[v] else place[v] for v in row}
            row.sort(key=lambda v: weight[v])
            place.update((v, i) for i, v in enumerate(row))
        crossings = _crossings(order, down)
        if crossings < fewest:
            best, fewest = order, crossings
    return best


def _neighbours(n: int, links: Sequence[tuple[int, int]]) -> tuple[list[list[int]], list[list[int]]]:
    up: list[list[int]] = [[] for _ in range(n)]
    down: list[list[int]] = [[] for _ in range(n)]
    for u, v in links:
        down[u].append(v)
        up[v].append(u)
    return up, down


def _crossings(order: Sequence[Sequence[int]], down: Sequence[Sequence[int]]) -> int:
    """How many pairs of links cross."""
    place = {v: i for row in order for i, v in enumerate(row)}
    total = 0
    for row in order:
        seen: list[int] = []
        for v in row:
            ends = sorted(place[w] for w in down[v])
            total += sum(len(seen) - bisect_left(seen, end + 1) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


def _placed(order: Sequence[Sequence[int]], widths: Sequence[float], links: Sequence[tuple[int, int]],
            main: Mapping[int, int], *, lanes_from: int) -> list[float]:
    """The centre of every box and lane: near its neighbours, in order, and apart.

    Lanes and the edges from `main` (by target) are straight before others.
    """
    up, down = _neighbours(len(widths), links)
    xs = [0.0] * len(widths)
    for row in order:
        x = -sum(widths[v] + GAP_X for v in row) / 2
        for v in row:
            xs[v] = x + widths[v] / 2
            x += widths[v] + GAP_X

    def pull(v: int, w: int) -> float:
        if v >= lanes_from and w >= lanes_from:
            return 40.0
        return 5.0 if main.get(v) == w or main.get(w) == v else 1.0

    for sweep in range(SWEEPS):
        downwards = sweep % 2 == 0
        for row in order if downwards else reversed(order):
            wanted: list[tuple[float, float]] = []
            for v in row:
                near = [*up[v], *down[v]] if sweep == SWEEPS - 1 else (up if downwards else down)[v]
                force = sum(pull(v, w) for w in near)
                wanted.append((sum(pull(v, w) * xs[w] for w in near) / force, force) if near else (xs[v], 0.01))
            for v, x in zip(row, _apart(wanted, [widths[v] for v in row])):
                xs[v] = x
    return xs


def _apart(wanted: Sequence[tuple[float, float]], widths: Sequence[float]) -> list[float]:
    """Centres nearest to the wanted (x, weight) in least squares, in order and with gaps between them."""
    offsets = [0.0]
    for left, right in pairwise(widths):
        offsets.append(offsets[-1] + (left + right) / 2 + GAP_X)
    pools: list[tuple[float, float, int]] = []  # weighted sum, weight, how many
    for (x, weight), offset in zip(wanted, offsets):
        pools.append(((x - offset) * weight, weight, 1))
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            a, b = pools[-2:]
            pools[-2:] = [(a[0] + b[0], a[1] + b[1], a[2] + b[2])]
    base = [total / weight for total, weight, count in pools for _ in range(count)]
    return [x + offset for x, offset in zip(base, offsets)]


def _ports(edges: Sequence[tuple[int, int]], chains: dict[tuple[int, int], tuple[int, ...]], xs: Sequence[float],
           widths: Sequence[float]) -> dict[tuple[int, int], tuple[float, float]]:
    """Where every edge leaves its source and meets its target: spread over the side, ordered by where it comes from."""
    ends: dict[tuple[int, int], tuple[float, float]] = {}
    arriving: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for u, v in edges:
        arriving[v].append((u, v))
    for v, coming in arriving.items():
        coming.sort(key=lambda edge: xs[chains[edge][-1] if chains[edge] else edge[0]])
        step = min(16.0, widths[v] / (len(coming) + 1))
        for i, edge in enumerate(coming):
            ends[edge] = (xs[edge[0]], xs[v] + (i - (len(coming) - 1) / 2) * step)
    return ends
