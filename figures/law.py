"""The law that joint training obeys: what it costs of the evidence is an area under its gap.

With E(theta) = mean log p(x), G(theta) the smallest mean gap between log p(x) and the ELBO that the
family of q allows, and theta(w) where E - w G = (1 - w) E + w ELBO is largest, w = 0 is maximum
likelihood and w = 1 joint training, and

    E(theta(0)) - E(theta(1))  =  integral over w from 0 to 1 of  G(theta(w)) - G(theta(1)).

The proof and what follows stand on the page, figures/law/README.md.

Scripts call `follow`; `split` makes one file of each case that a run followed, in results/law, from
which alone the figure and the table are drawn. All quantities are in nats.

Literature: that a bound pulls the model towards where it is tight, and may lower the likelihood, is
older than VAEs (Hinton, 2000, "even if this gives lower log probability"; MacKay, 2001; Turner &
Sahani, 2011). As estimators, optima of E - G are profile M-estimators (Westling & McCormick, 2019).
The gap's parts, family and network, are those of Hoffman (2017), Cremer et al. (2018) and Zhang,
Hayes & Barber (2022); that a Gaussian VAE turns z, which is free, is in Lucas et al. (2019),
Rolinek et al. (2019), Kumar & Poole (2020) and Reizinger et al. (2022).
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from figures import run

State = TypeVar("State")
Ascent = Callable[[State, float], tuple[State, float, float]]


def follow(
    weights: Sequence[float], ascend: Ascent, low: State, high: State | None = None
) -> tuple[dict[str, Any], list[State]]:
    """theta(w) followed from w = 0 up, from the state `low`, and from w = 1 down, from `high` or,
    without it, from where the way up ends; the better of both is kept.

    ascend(state, w) goes uphill on E - w G from a state; it returns where that ends, E and G there.
    Returns lists over the weights: `evidence` E, `gap` G; `ahead`, by how much E - w G is larger on
    the way up than on the way down: where it is not zero there are several optima. And the states
    that are kept.
    """
    paths, state = [], low
    for order in (weights, weights[::-1]):
        path = []
        for w in order:
            path.append(ascend(state, w))
            state = path[-1][0]
        state = state if high is None else high
        paths.append(path if order is weights else path[::-1])
    ahead = [
        (up[1] - w * up[2]) - (down[1] - w * down[2])
        for w, up, down in zip(weights, *paths, strict=True)
    ]
    best = [up if lead >= 0 else down for lead, up, down in zip(ahead, *paths, strict=True)]
    states, evidence, gap = map(list, zip(*best, strict=True))
    found = {"weight": list(weights), "evidence": evidence, "gap": gap, "ahead": ahead}
    return found, states


def uphill(value: Callable[[Tensor], Tensor], start: Tensor, steps: dict[str, float]) -> Tensor:
    """Where L-BFGS from `start`, float64 on the CPU, finds `value` largest; steps: its options."""
    import scipy.optimize

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.from_numpy(flat).view_as(start).requires_grad_()
        loss = -value(at)
        (gradient,) = torch.autograd.grad(loss, at)
        return loss.item(), gradient.numpy().ravel()

    how: dict[str, Any] = {"jac": True, "method": "L-BFGS-B", "options": steps}
    optimum = scipy.optimize.minimize(objective, start.numpy().ravel(), **how)
    return torch.from_numpy(optimum.x).view_as(start)


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


def save(options: Any, cases: list[dict], **more: Any) -> None:
    """Write and print the result of a run of cases, each with its `seconds`, on the CPU."""
    seconds = {case["name"]: round(case.pop("seconds"), 2) for case in cases}
    place = options, torch.device("cpu"), sum(seconds.values()), {"cases": cases}, {}
    run.save_result(*place, seconds_of_cases=seconds, **more)
    report(cases)


def report(cases: Iterable[dict]) -> None:
    """Print what each case costs, the area, and the bound."""
    rows = []
    for case in cases:
        knob = f"{case['knob']} {case['value']:g}"
        rows.append((knob, case["gap"][0], narrowing(case), area(case), cost(case)))
    run.print_table(("nats", "gap at w = 0", "narrowing: a bound", "area", "cost"), rows, digits=5)


def split(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The cases of a run, each a result of its own, by name: `metrics` has the lists and what the
    case is of.

    Where the law does not hold a better optimum was met at one end than on the way: the case is not
    settled.
    """
    cases = {}
    for case in result.get("metrics", {}).get("cases", ()):
        metrics = {key: value for key, value in case.items() if key != "name"}
        metrics["settled"] = holds(metrics)
        found = {"config": result["config"], "metrics": metrics, "history": {}}
        found["environment"] = result["environment"]
        cases[case["name"]] = found | {"seconds": result["seconds_of_cases"][case["name"]]}
    return cases


def holds(metrics: dict) -> bool:
    """Whether cost and area agree to 5% or 0.002 nats."""
    return abs(cost(metrics) - area(metrics)) <= max(0.05 * area(metrics), 0.002)


SHORT = {  # of what a case is of, in the figure's legend
    "plane, 3 hidden units; factorized, best Gaussian of each point": "best q of each point",
    "linear decoder, b = 4": "log-linear decoder",
    "free decoder, b = 4": "free decoder",
}
EXAMPLES = ("mixture_0.5_3", "plane3_factorized_own_0.6_seed0", "hashing_free_b4_n2_seed1")


def draw(cases: dict[str, dict], folder: Path) -> None:
    """Gaps against w with the area, cost against area, and cost over narrowing against the knob."""
    import matplotlib.pyplot as plt

    from figures import style

    figure, axes = plt.subplots(1, 3, figsize=(10, 3.3))
    looks = {section: style.look(i) for i, section in enumerate((3, 4, 5))}
    largest = max(area(case) for case in cases.values())
    for section, look in looks.items():
        here = {name: case for name, case in cases.items() if case["section"] == section}
        if not here:
            continue
        shown = here[next((name for name in EXAMPLES if name in here), next(iter(here)))]
        w, gap = np.array(shown["weight"]), np.array(shown["gap"])
        label = f"Section {section}, {shown['knob']} {shown['value']:g}"
        axes[0].plot(w, gap, label=label, **look | {"linestyle": "-"})
        axes[0].fill_between(w, gap, gap[-1], color=look["color"], alpha=0.15, linewidth=0)
        for case in here.values():
            face = None if case["settled"] else "white"
            point = look | {"linestyle": "none", "markerfacecolor": face}
            axes[1].plot(area(case), cost(case), **point)
        axes[1].plot([], [], label=f"Section {section}", **look | {"linestyle": "none"})
        kinds = dict.fromkeys(case["of"] for case in here.values())
        for line, kind in zip(itertools.cycle(style.LINES), kinds, strict=False):
            of_kind = {n: c for n, c in here.items() if c["of"] == kind and narrowing(c) > 1e-3}
            alike, curve = groups(of_kind), look | {"linestyle": line, "linewidth": 1}
            paid = [np.mean([cost(case) / narrowing(case) for case in same]) for same in alike]
            words = SHORT.get(kind, kind.removeprefix("code words: "))
            label = f"{section}: {words}" if len(paid) > 1 else None
            if "encoder" in kind:  # of several sizes
                curve["marker"] = "x"
            axes[2].plot([same[0]["value"] for same in alike], paid, label=label, **curve)
        if any("encoder" in kind for kind in kinds):
            crosses = look | {"linestyle": "none", "marker": "x"}
            axes[2].plot([], [], label=f"{section}: q by an encoder", **crosses)
    axes[0].set(title="(a) the cost is the shaded area", xlabel="weight w", ylabel="gap G (nats)")
    axes[0].set_ylim(0, None)
    equal = {"color": style.REFERENCE, "linewidth": 1, "zorder": 0}
    axes[1].plot([0, largest], [0, largest], label="cost = area", **equal)
    axes[1].set(xlabel="area (nats)", ylabel="cost in log p(x) (nats)", title="(b) every case")
    axes[1].set_xscale("symlog", linthresh=1e-3)
    axes[1].set_yscale("symlog", linthresh=1e-3)
    axes[2].set(xscale="log", xlabel="variance, sigma, or words", ylabel="cost / narrowing")
    axes[2].set(ylim=(0, None), title="(c) part of the narrowing that is paid, means")
    for axis in axes:
        axis.legend(fontsize=7)
    axes[2].set_ylim(0, 1.45 * axes[2].get_ylim()[1])  # room for its legend
    style.save(figure, folder, "one_law")


def write_cases(cases: dict[str, dict], folder: Path) -> None:
    """law.csv: every case."""
    from figures import style

    place = ("section", "of", "knob", "value", "seed", "settled")
    rows = []
    for name, case in cases.items():
        quantities = case["gap"][0], narrowing(case), area(case), cost(case)
        rows.append((name, *(case[key] for key in place), *quantities))
    header = ("case", *place, "gap at w = 0", "narrowing: the bound", "area", "cost")
    style.write_csv(folder / "law", header, rows)


def ordered(cases: Iterable[dict]) -> list[dict]:
    """Cases by section, what they are of, knob and seed."""
    return sorted(cases, key=lambda case: (*_kind(case), case["seed"] or 0))


def groups(cases: Mapping[str, dict]) -> list[list[dict]]:
    """Cases that differ in the seed only."""
    return [list(alike) for _, alike in itertools.groupby(ordered(cases.values()), _kind)]


def _kind(case: Mapping[str, Any]) -> tuple:
    return case["section"], case["of"], case["value"]


def of_seeds(values: Iterable[float]) -> str:
    """Mean and interval, or the one value."""
    several = list(values)
    return run.interval(several, 4) if len(several) > 1 else f"{several[0]:.4f}"
