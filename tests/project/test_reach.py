import math

import pytest

from project.airports.reach import EARTH_RADIUS_KM, distance_km, farthest, link, vector

# One degree of longitude at the equator.
DEGREE = 2 * math.pi * EARTH_RADIUS_KM / 360


def equator(*longitudes: float) -> list[tuple[float, float, float]]:
    return [vector(0, longitude) for longitude in longitudes]


def test_distance_is_the_great_circle() -> None:
    heathrow, kennedy = vector(51.4706, -0.461941), vector(40.639801, -73.7789)
    assert distance_km(heathrow, kennedy) == pytest.approx(5540, abs=10)
    assert distance_km(vector(90, 0), vector(-90, 123)) == pytest.approx(180 * DEGREE)
    assert distance_km(heathrow, heathrow) == 0


def test_links_work_across_date_line_and_pole() -> None:
    places = [vector(0, 179.9), vector(0, -179.9), vector(89.9, 0), vector(89.9, 180)]
    assert list(link(places, 30)) == [0b0011, 0b0011, 0b1100, 0b1100]


def test_links_match_a_comparison_of_every_pair() -> None:
    places = [vector(lat, lon) for lat in range(-90, 91, 15) for lon in range(-180, 180, 20)]
    for range_km in (500, 3000, 19000):
        expected = [
            sum(1 << j for j, b in enumerate(places) if distance_km(a, b) <= range_km)
            for a in places
        ]
        assert list(link(places, range_km)) == expected


def test_hops_limit_the_distance() -> None:
    places = equator(0, 1, 2, 3, 10)
    links = list(link(places, 1.1 * DEGREE))
    two = farthest(0, places, links, hops=2)
    assert two.route == [0, 1, 2]
    assert two.distance_km == pytest.approx(2 * DEGREE)
    assert two.reachable == 2
    assert farthest(0, places, links, hops=9).route == [0, 1, 2, 3]


def test_route_has_as_few_hops_as_possible() -> None:
    places = equator(0, 0.5, 1)
    links = list(link(places, 1.1 * DEGREE))
    assert farthest(0, places, links, hops=5).route == [0, 2]


def test_isolated_place_reaches_nothing() -> None:
    places = equator(0, 90)
    links = list(link(places, 100))
    assert farthest(0, places, links, hops=3) == ([0], 0.0, 0)


def test_farthest_place_is_measured_by_distance() -> None:
    # Around the globe the farthest place is half way, not the last one reached.
    places = equator(*range(0, 360, 10))
    links = list(link(places, 10.5 * DEGREE))
    journey = farthest(0, places, links, hops=36)
    assert journey.distance_km == pytest.approx(180 * DEGREE)
    assert len(journey.route) == 19
    assert journey.reachable == 35
