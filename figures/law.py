"""The law that joint training obeys: what it costs of the evidence is an area under its gap.

With E(theta) = mean log p(x), G(theta) the smallest mean gap between log p(x) and the ELBO that the family of q allows,
and theta(w) where E - w G = (1 - w) E + w ELBO is largest, w = 0 is maximum likelihood and w = 1 joint training.
V(w) = max (E - w G) is a maximum of functions that are linear in w: convex, with V'(w) = -G(theta(w)) (the envelope
theorem). V(1) = V(0) - integral of G(theta(w)) dw then says, for *global* optima,

    E(theta(0)) - E(theta(1))  =  integral over w from 0 to 1 of  G(theta(w)) - G(theta(1)).

So each nat by which the gap narrows at weight w costs w nats, and the cost is at most what the gap narrows. Where the
path jumps to a better optimum by Delta in E - w G, the cost is smaller than the area by Delta.

Scripts call `follow` and `write_cases`; the drawing needs the files in results/law alone. All quantities are in nats.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from figures.run import print_table

State = TypeVar("State")
Ascent = Callable[[State, float], tuple[State, float, float]]


def follow(
    weights: Sequence[float], ascend: Ascent, low: State, high: State | None = None
) -> tuple[dict[str, Any], list[State]]:
    """theta(w) followed from w = 0 up, from the state `low`, and from w = 1 down, from `high` or, without it, from where
    the way up ends; the better of both is kept.

    ascend(state, w) goes uphill on E - w G from a state; it returns where that ends, E and G there.
    Returns lists over the weights: `evidence` E, `gap` G; `ahead`, by how much E - w G is larger on the way up than on
    the way down: where it is not zero there are several optima. And the states that are kept.
    """
    paths, state = [], low
    for order in (weights, weights[::-1]):
        path = []
        for w in order:
            path.append(ascend(state, w))
            state = path[-1][0]
        state = state if high is None else high
        paths.append(path if order is weights else path[::-1])
    ahead = [(up[1] - w * up[2]) - (down[1] - w * down[2]) for w, up, down in zip(weights, *paths, strict=True)]
    best = [up if lead >= 0 else down for lead, up, down in zip(ahead, *paths, strict=True)]
    found = {"weight": list(weights), "evidence": [p[1] for p in best], "gap": [p[2] for p in best], "ahead": ahead}
    return found, [p[0] for p in best]


def weights(count: int) -> list[float]:
    """So many weights from 0 to 1, closer at 0, where the gap changes most."""
    return [(i / (count - 1)) ** 2 for i in range(count)]


def cost(metrics: dict) -> float:
    """Evidence that joint training costs."""
    return metrics["evidence"][0] - metrics["evidence"][-1]


def narrowing(metrics: dict) -> float:
    """By how much the gap narrows: a bound of the cost."""
    return metrics["gap"][0] - metrics["gap"][-1]


def area(metrics: dict) -> float:
    """The area between the gap and its final value, by the trapezoid rule."""
    return float(np.trapezoid(metrics["gap"], metrics["weight"])) - metrics["gap"][-1]


def report(cases: Iterable[dict]) -> None:
    """Print what each case costs, the area, and the bound."""
    rows = [
        (f"{case['knob']} {case['value']:g}", case["gap"][0], narrowing(case), area(case), cost(case)) for case in cases
    ]
    print_table(("nats", "gap at w = 0", "narrowing: a bound", "area", "cost"), rows, digits=5)
