"""The farthest airport that a plane can reach in a few hops of limited length."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

EARTH_RADIUS_KM = 6371.0088

Vector = tuple[float, float, float]
#: A set of places, as the bits of one number. All masks together need one bit for each pair of
#: places, however close the places are: 100 MB for all airports of the world. Sets of indices would
#: need gigabytes.
Mask = int


class Journey(NamedTuple):
    """The route from one place to the farthest place, and the distance between the two."""

    route: list[int]
    distance_km: float
    #: The number of other places within reach.
    reachable: int


def vector(lat: float, lon: float) -> Vector:
    """Return a place on the unit sphere, where poles and date line are not special cases."""
    phi, theta = math.radians(lat), math.radians(lon)
    return (math.cos(phi) * math.cos(theta), math.cos(phi) * math.sin(theta), math.sin(phi))


def distance_km(a: Vector, b: Vector) -> float:
    """Return the great-circle distance."""
    # The chord is precise for short arcs too, where the cosine is not.
    return 2 * EARTH_RADIUS_KM * math.asin(min(1.0, math.dist(a, b) / 2))


def link(places: Sequence[Vector], range_km: float) -> Iterator[Mask]:
    """Yield for each place the mask of the places in its range, including itself.

    Yields one at a time, so that the caller can report progress.
    """
    chord = 2 * math.sin(min(range_km / EARTH_RADIUS_KM, math.pi) / 2)
    cells: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    addresses = []
    for index, (x, y, z) in enumerate(places):
        address = (int(x // chord), int(y // chord), int(z // chord))
        addresses.append(address)
        cells[address].append(index)
    size = len(places) // 8 + 1
    steps = (-1, 0, 1)
    around = [(i, j, k) for i in steps for j in steps for k in steps]
    for place, (cx, cy, cz) in zip(places, addresses, strict=True):
        bits = bytearray(size)
        for i, j, k in around:
            for other in cells.get((cx + i, cy + j, cz + k), ()):
                if math.dist(place, places[other]) <= chord:
                    bits[other >> 3] |= 1 << (other & 7)
        yield int.from_bytes(bits, "little")


def farthest(start: int, places: Sequence[Vector], links: Sequence[Mask], hops: int) -> Journey:
    """Return the route to the farthest place within at most this many hops."""
    origin = places[start]
    seen = 1 << start
    rings = [[start]]
    best, best_chord, best_ring = start, 0.0, 0
    for number in range(1, hops + 1):
        reached = seen
        for index in rings[-1]:
            reached |= links[index]
        ring = list(_members(reached & ~seen))
        if not ring:
            break
        seen = reached
        rings.append(ring)
        for index in ring:
            chord = math.dist(origin, places[index])
            if chord > best_chord:
                best, best_chord, best_ring = index, chord, number
    return Journey(
        route=_route(best, rings[:best_ring], links),
        distance_km=distance_km(origin, places[best]),
        reachable=seen.bit_count() - 1,
    )


def _route(end: int, rings: list[list[int]], links: Sequence[Mask]) -> list[int]:
    """Walk back ring by ring. Links go both ways, so any neighbour in the ring before works."""
    route = [end]
    for ring in reversed(rings):
        route.append(next(index for index in ring if links[route[-1]] >> index & 1))
    return route[::-1]


def _members(mask: Mask) -> Iterator[int]:
    bits = bin(mask)[:1:-1]
    index = bits.find("1")
    while index >= 0:
        yield index
        index = bits.find("1", index + 1)
