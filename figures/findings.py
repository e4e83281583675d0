"""What was found, in words: the pages section3.md, section4.md and section5.md, rendered from the
committed results.

Each page has a template beside this module, where its prose and its numbers stand, once. Templates
see `m`, the metrics of every result by name, and what the functions here compute from several
results."""

import itertools
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data import write_aside
from figures import law, reference, section4, section5
from figures.run import half_width, interval

BITS, LAYERS = (8, 16, 32, 64), (0, 1, 2)
WITHOUT_CODES = (
    467.1  # test loss of a model without codes; tests/test_hashing.py computes it from the corpus
)
EVIDENCE = "log p(x)"
SEEDS = ("", "_seed1", "_seed2")  # ends of the names of Section 4's runs of three seeds
ARMS = (  # Section 4 without an encoder
    ("drawn faces, sigma 0.5, seed 0", "factorized"),
    ("seed 1", "factorized_seed1"),
    ("seed 2", "factorized_seed2"),
    ("sigma 0.5, seed 0, another ground truth, 1,200 steps", "factorized_long"),
    ("sigma 1", "factorized_sigma1"),
    ("sigma 0.2", "factorized_sigma0.2"),
    ("photographs, sigma 0.5", "photos_factorized"),
)
PAGES = ("section3.md", "section4.md", "section5.md")


def read(folder: Path) -> dict[str, dict]:
    """Every result below a folder by its path there, such as celeba/dcgan; as JSON holds it."""
    results = {}
    for path in sorted(folder.rglob("*.json")):
        result = json.loads(path.read_bytes())
        name = path.relative_to(folder).with_suffix("").as_posix()
        results[name] = result
    return results


def fixed(value: float | Sequence[float], digits: int = 1) -> str:
    """A number, or several as "a, b and c", with so many digits."""
    if isinstance(value, int | float):
        return f"{value:,.{digits}f}"
    *most, last = (f"{x:,.{digits}f}" for x in value)
    return f"{', '.join(most)} and {last}" if most else last


class Claim(NamedTuple):
    """One quantity before and after joint training, by seed, and whether it should rise, by the
    report's claim: the bound up, the decoder away from the data.
    """

    section: str
    quantity: str
    before: list[float]
    after: list[float]
    rises: bool
    note: str = ""

    def row(self) -> tuple[str, ...]:
        """Means over seeds, and the change with its 95% t-interval; as claimed if all of it is."""
        digits = 4 if abs(self.before[0]) < 10 else 2
        changes = [after - before for before, after in zip(self.before, self.after, strict=True)]
        change = statistics.mean(changes)
        verdict = "yes" if (change > 0) == self.rises else "no"
        if len(changes) == 1:
            text, verdict = f"{change:,.{digits}f}", f"{verdict}, in one seed"
        else:
            text = interval(changes, digits)
            verdict = "within chance" if abs(change) <= half_width(changes) else verdict
        means = (f"{statistics.mean(values):,.{digits}f}" for values in (self.before, self.after))
        return (self.section, self.quantity, str(len(changes)), *means, text, verdict + self.note)


def exact_runs(results: Mapping[str, dict], stage: str, layers: int) -> list[str]:
    """Runs of `hashing.py exact` with d hidden layers that have a stage, by seed; not those of
    other lengths."""
    found = [
        name
        for name, result in results.items()
        if name.startswith("exact_") and "long" not in name
        if result["config"]["decoder_layers"] == layers and stage in result["metrics"]
    ]
    return sorted(found, key=lambda name: results[name]["config"]["seed"])


def shortfalls(runs: Sequence[dict], encoder: str) -> list[float]:
    """Train ELBO of joint training from an encoder fitted by the ELBO, less that from one fitted by
    regression, in the runs of `hashing.py exact` that have both: below zero, the first was not at
    its optimum."""
    pairs = [[run.get(f"{encoder}{stage}_joint") for stage in ("", "_regressed")] for run in runs]
    return [a["elbo"] - b["elbo"] for a, b in pairs if a is not None and b is not None]


def claims(results: Mapping[str, dict]) -> list[Claim]:
    """The report's claim in the results that are there."""
    found = []

    def add(
        section: str,
        quantity: str,
        pairs: Sequence[tuple[float, float]],
        rises: bool,
        note: str = "",
    ) -> None:
        if pairs:
            before, after = map(list, zip(*pairs, strict=True))
            found.append(Claim(section, quantity, before, after, rises, note))

    mixtures = [
        r["metrics"] for name, r in results.items() if re.fullmatch(r"mixture(_seed\d+)?", name)
    ]
    for quantity, key, rises in (("ELBO", "elbo", True), (EVIDENCE, "evidence", False)):
        add("3", quantity, [(m["frozen"][key], m["joint"][key]) for m in mixtures], rises)
    if "celeba/joint_report" in results:
        frozen, joint = (
            results[f"celeba/{name}_report"]["metrics"] for name in ("encoder", "joint")
        )
        after = f", {joint['iterations']:,} iterations"
        add("4", f"ELBO{after}", [(frozen["elbo"], joint["elbo"])], True)
        features = "inception" if "inception" in joint["frechet"] else "discriminator"
        distances = (joint["frechet"][features][key] for key in ("floor", "prior"))
        add("4", f"Fréchet distance of own samples ({features}){after}", [tuple(distances)], True)
    drawn = [
        results[name]["history"]
        for seed in SEEDS
        if (name := f"inference/encoder_1000{seed}") in results
    ]
    for quantity, key, rises in (("ELBO", "elbo", True), (EVIDENCE, "evidence", False)):
        add("4", f"{quantity}, drawn faces", [(h[key][0], h[key][-1]) for h in drawn], rises)
    for layers, encoder in itertools.product(LAYERS, ("e1", "e3", "a1")):
        runs = [
            {stage: m["train"] for stage, m in results[name]["metrics"].items()}
            for name in exact_runs(results, f"{encoder}_joint", layers)
        ]
        pairs = [
            (run[f"{encoder}_frozen"]["elbo"], run[f"{encoder}_joint"]["elbo"]) for run in runs
        ]
        add("5", f"ELBO, {encoder}, d = {layers}", pairs, True)
        pairs = [
            (run["likelihood_on"]["log_likelihood"], run[f"{encoder}_joint"]["log_likelihood"])
            for run in runs
        ]
        short = [-shortfall for shortfall in shortfalls(runs, encoder)]
        optimisation = ""
        if min(short, default=0) > 1:
            optimisation = f"; optimisation: its ELBO ends {fixed(short)} below another run's"
        add("5", f"{EVIDENCE}, {encoder}, d = {layers}", pairs, False, optimisation)
    return found


def of_section4(results: dict[str, dict]) -> dict[str, Any]:
    """What the page of Section 4 says of joint training without an encoder."""
    inference = {
        n.removeprefix("inference/"): r for n, r in results.items() if n.startswith("inference/")
    }

    def beyond(name: str) -> tuple[float, float]:
        """What an arm lost beyond that with full Gaussians, and the half width of its interval over
        images."""
        found = section4.beyond_full(inference[name], inference)
        assert found is not None
        return found

    def over(name: str) -> list[float]:
        """The same in each seed."""
        return [beyond(f"{name}{seed}")[0] for seed in SEEDS]

    def bound(name: str) -> float:
        """By how much an arm's factorized gap narrowed beyond that of the arm with full
        Gaussians."""
        full = inference[name.replace("factorized", "full")]["history"]["gap_factorized"]
        own = section4.own_gap(inference[name])
        return own[0] - own[-1] - (full[0] - full[-1])

    planes = [r for name, r in results.items() if name.startswith("law/plane")]

    return {
        "arm": inference,
        "arms": [(words, name) for words, name in ARMS if name in inference],
        "bound": bound,
        "gap": lambda name: section4.own_gap(inference[name]),
        "starts": lambda names: [section4.own_gap(inference[name])[0] for name in names],
        "beyond": beyond,
        "over": over,
        "over_seeds": lambda name: interval(over(name), 2),
        "either_side": lambda pair: "{:.2f} ± {:.2f}".format(*pair),
        "plane_points": " or ".join(sorted({str(r["config"]["points"]) for r in planes})),
        "finer": max(
            (
                abs(fine - r["metrics"]["evidence"][i])
                for r in planes
                for i, fine in zip((0, -1), r["metrics"]["finer_evidence"], strict=True)
            ),
            default=0.0,
        ),
        "linear": section4.linear_gaussian(),
    }


def is_full(result: dict) -> bool:
    """Whether this is a cell with all of the report's epochs."""
    return result["metrics"].get("epochs") == reference.SECTION5_EPOCHS


def of_section5(results: dict[str, dict]) -> dict[str, Any]:
    """What the page of Section 5 says of several results together."""

    def cell(name: str) -> dict:
        return results[f"hashing/{name}"]

    def lowest(name: str, epochs: int = 300) -> float:
        """Minimum of the test loss over the first epochs."""
        return min(cell(name)["history"]["test"][:epochs])

    def column(encoder: str, layers: int, key: str = "test_min", end: str = "") -> list[float]:
        """A metric of a column of the grid, by b."""
        return [cell(f"{encoder}_b{bits}_d{layers}{end}")["metrics"][key] for bits in BITS]

    def published(encoder: str, layers: int) -> list[float]:
        """That column of the report's Table 3."""
        return [reference.TABLE3[encoder, bits, layers] for bits in BITS]

    def less_e1(encoder: str, bits: int, layers: int = 0) -> str:
        """Difference of the minima over the first 200 epochs, three seeds."""
        seeds = ("", "_seed2", "_seed3")
        here, e1 = (
            [lowest(f"{e}_b{bits}_d{layers}{seed}", 200) for seed in seeds] for e in (encoder, "e1")
        )
        return interval([a - b for a, b in zip(here, e1, strict=True)])

    def reached(run: str, stage: str, split: str = "train") -> float:
        return results[run]["metrics"][stage][split]["log_likelihood"]

    def lost(run: str, stage: str) -> float:
        """Train likelihood of a stage of joint training below likelihood training for as long."""
        return reached(run, "likelihood_on") - reached(run, stage)

    def minima(names: Sequence[str]) -> list[float]:
        return [cell(name)["metrics"]["test_min"] for name in names]

    def went_on(run: str) -> float:
        """What likelihood training gains by going on."""
        return reached(run, "likelihood_on") - reached(run, "likelihood")

    def gain(run: str, stage: str, epochs: int = 20) -> float:
        curve = results[run]["history"][stage]["train_log_likelihood"]
        return curve[-1] - curve[-1 - epochs]

    def runs(stage: str, layers: int) -> list[str]:
        return exact_runs(results, stage, layers)

    def readings(encoder: str, *layers: int, bits: Sequence[int] = BITS) -> dict[str, list]:
        """Of the full cells with these d and b: b and d, the report's test loss, ours by either
        reading of its test loop, and how far the report's is above them; fed counts also the epoch.
        """
        places = [(b, d) for d in layers for b in bits if is_full(cell(f"{encoder}_b{b}_d{d}"))]
        full = [cell(f"{encoder}_b{b}_d{d}") for b, d in places]
        found: dict[str, list] = {"bits": [b for b, _ in places], "layers": [d for _, d in places]}
        found["report"] = [reference.TABLE3[encoder, b, d] for b, d in places]
        for reading, key in (("counts", "test_counts_min"), ("frequencies", "test_min")):
            found[reading] = [result["metrics"][key] for result in full]
            found[f"{reading}_off"] = [
                a - b for a, b in zip(found["report"], found[reading], strict=True)
            ]
        curves = [result["history"]["test_counts"] for result in full]
        found["counts_epoch"] = [curve.index(min(curve)) + 1 for curve in curves]
        return found

    def explained(result: dict, within: float = 5.0) -> str:
        """Which reading of the released code's test loop comes within so many nats of the report's
        Table 3."""
        metrics, published = result["metrics"], reference.TABLE3.get(section5.place(result))
        readings = {"frequencies": metrics["test_min"], "counts": metrics.get("test_counts_min")}
        if published is None or readings["counts"] is None:
            return "-"
        near = [name for name, value in readings.items() if abs(value - published) <= within]
        return "either" if len(near) == 2 else "".join(near) or "neither"

    exact = [f"exact_d{layers}" for layers in LAYERS]
    wide = readings("e3", *LAYERS, bits=(32, 64))
    places = list(itertools.product(BITS, LAYERS))
    grid = [f"b{bits}_d{layers}" for bits, layers in places]
    e1 = [lowest(f"e1_{place}") for place in grid]
    held = {place: cell(f"e1_{place}_heldout0.1")["metrics"] for place in grid}
    disarm, arm, reinforce = (
        [f"e1_b64_d0{estimator}{seed}" for seed in ("", "_seed2", "_seed3")]
        for estimator in ("", "_arm", "_reinforce")
    )
    cells = section5.in_order(
        {n.removeprefix("hashing/"): r for n, r in results.items() if n.startswith("hashing/")}
    )
    trained = [
        (result["history"]["train"], reference.TABLE2[place])
        for result in cells.values()
        if is_full(result) and (place := section5.place(result)) in reference.TABLE2
    ]
    histories = [result["history"] for result in cells.values()]
    batched = [min(zip(h["test"], h["test_per_document"], strict=True)) for h in histories]
    parts = {name: results[f"parts/{name}"]["history"]["held_out"] for name in PARTS}
    best = [results[f"best_seed{seed}"]["metrics"] for seed in (1, 2, 3)]
    # Of e2, fed counts: how far cells of fewer epochs than the report's are from it, but for b =
    # 64, d = 2.
    misfits = [
        abs(reference.TABLE3["e2", bits, d] - result["metrics"]["test_counts_min"])
        for bits, d in places
        if (bits, d) != (64, 2) and not is_full(result := cell(f"e2_b{bits}_d{d}"))
    ]
    untrained = cell("e2_b64_d2")["history"]["test_counts"]
    joint_runs = [
        *(run for layers in LAYERS for run in runs("e1_regressed_joint", layers)),
        "exact_long_again",
    ]
    return {
        "lowest": lowest,
        "column": column,
        "published": published,
        "less_e1": less_e1,
        "reached": reached,
        "lost": lost,
        "lost_at": lambda stage, layers: [lost(run, stage) for run in runs(stage, layers)],
        "additivity": lambda stage: [
            results[run]["metrics"][stage]["normaliser"]["rms"] for run in runs("e1_joint", 0)
        ],
        "behind_from_scratch": lambda stage, layers: [
            reached(run, "likelihood") - reached(run, stage) for run in runs(stage, layers)
        ],
        "at_d0": max(
            lost(run, stage)
            for stage in ("e1_joint", "e1_regressed_joint")
            for run in runs(stage, 0)
        ),
        "gaps": lambda stage, layers: [
            results[run]["metrics"][stage]["train"]["gap"] for run in runs(stage, layers)
        ],
        "lag": max(  # of the curves in the figure's (a) and (b)
            reached(run, stage) - results[run]["history"][stage]["train_log_likelihood"][-1]
            for run, joint in (("exact_d0", "e3_joint"), ("exact_d2", "e1_joint"))
            for stage in ("likelihood", "likelihood_on", joint)
        ),
        "likelihoods": sorted(
            reached(run, "likelihood") for run in (*runs("e1_joint", 2), "exact_long_again")
        ),
        "gain": gain,
        "went_on": went_on,
        "test_gaps": lambda stage: [results[run]["metrics"][stage]["test"]["gap"] for run in exact],
        "cell": lambda name: cell(name)["metrics"],
        "exact": exact,
        "shorter": sum(not is_full(cell(f"e1_{place}")) for place in grid),
        "e1_misfit": max(
            abs(cell(f"e1_b{b}_d{d}")["metrics"]["test_min"] - reference.TABLE3["e1", b, d])
            for b, d in places
        ),
        "e4_less_e1": max(
            abs(lowest(f"e4_{place}") - value) for place, value in zip(grid, e1, strict=True)
        ),
        "tuned_less_e1": max(
            lowest(f"e3_{place}_lr0.1") - value for place, value in zip(grid, e1, strict=True)
        ),
        "behind": [reference.TABLE3["e3", b, d] - reference.TABLE3["e1", b, d] for b, d in places],
        "chosen": [chosen["test_selected"] - chosen["test_min"] for chosen in held.values()],
        "chosen_to_all": [
            chosen["test_selected"] - lowest(f"e1_{place}", chosen["epochs"])
            for place, chosen in held.items()
        ],
        "estimators": {"disarm": disarm, "arm": arm, "reinforce": reinforce},
        "minima": minima,
        "arm_gain": interval(
            [
                cell(a)["metrics"]["test_min"] - cell(b)["metrics"]["test_min"]
                for a, b in zip(arm, disarm, strict=True)
            ]
        ),
        "batched": [of_batches - of_documents for of_batches, of_documents in batched],
        "cells": len(histories),
        "scatter": lambda values: f"{statistics.mean(values):.1f} ({statistics.stdev(values):.1f})",
        "full": {name: result for name, result in cells.items() if is_full(result)},
        "explained": explained,
        "below": {
            "means": [statistics.mean(train[-100:]) - published for train, published in trained],
            "lowest": [min(train) - published for train, published in trained],
        },
        "readings": readings,
        "by_seed": lambda *names: {
            "counts": [cell(name)["metrics"]["test_counts_min"] for name in names],
            "frequencies": minima(names),
        },
        "fed_adds": [a - b for a, b in zip(wide["counts"], wide["frequencies"], strict=True)],
        "part_costs": [min(parts[name]) - min(parts["full"]) for name in PARTS if name != "full"],
        "part_epoch": parts["full"].index(min(parts["full"])),
        "part_tests": results["parts/full"]["history"]["test"],
        "best": {
            key: [metrics[key] for metrics in best] for key in ("test_selected", "test_refined")
        },
        "fed_misfit": max(misfits),
        "untrained_epoch": untrained.index(min(untrained)) + 1,
        "untrained_later": min(untrained[9:]),
        "without_codes": WITHOUT_CODES,
        "above_without_codes": sorted(
            key for key, loss in reference.TABLE3.items() if loss > WITHOUT_CODES
        ),
        "family": max(
            results[run]["metrics"]["e1_frozen"]["train"]["factorization"]
            for run in [*joint_runs, "exact_long"]
        ),
        "regression_gap": max(
            results[run]["metrics"]["e1_regressed"]["train"]["gap"] for run in joint_runs
        ),
        "from_regression": [lost(run, "e1_regressed_joint") for run in joint_runs],
    }


PARTS = ("full", "dropout", "decay", "average", "prior", "rate")


LAW_EXAMPLES = (  # rows of the README's table
    ("3: four Gaussians, variance 0.5", "mixture_0.5_3"),
    (
        "4: Gaussian VAE in the plane, sigma 0.6, best Gaussian of each point",
        "plane3_factorized_own_0.6_seed0",
    ),
    ("4: the same, an encoder of four hidden units", "plane3_factorized_encoder4_0.6_seed0"),
    ("5: documents of 2 words, one distribution per code", "hashing_free_b4_n2_seed1"),
    ("5: documents of 32 words, one distribution per code", "hashing_free_b4_n32_seed1"),
    ("5: documents of 32 words, log-linear", "hashing_linear_b4_n32_seed1"),
)
MARKERS = ("<!-- rendered by figures/make.py from here -->\n", "<!-- to here -->\n")


def write_pages(folder: Path, readme: Path) -> None:
    """Render the pages into `folder` from folder/results, and the README's numbers between its
    markers."""
    results = read(folder / "results")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["f"] = fixed
    values: dict[str, Any] = {
        "r": results,
        "m": {name: result["metrics"] for name, result in results.items()},
        "reference": reference,
        "along": lambda name, iteration: dict(
            zip(
                results[name]["history"]["iteration"], results[name]["history"]["elbo"], strict=True
            )
        )[iteration],
    }
    values |= of_section4(results) | of_section5(results)
    laws = {
        n.removeprefix("law/"): result["metrics"]
        for n, result in results.items()
        if n.startswith("law/")
    }
    values |= {"laws": laws, "law_examples": LAW_EXAMPLES, "gap_at_0": lambda case: case["gap"][0]}

    def over_lengths(decoder: str, n: int, quantity: Callable[[dict], float]) -> str:
        """Mean over seeds of a quantity of Section 5's cases with documents of n words."""
        found = [
            quantity(c)
            for name, c in laws.items()
            if name.startswith(f"hashing_{decoder}_b4_n{n}_")
        ]
        return interval(found, 4) if len(found) > 1 else "not run"

    values["over_lengths"] = over_lengths
    values |= {"cost": law.cost, "narrowing": law.narrowing, "area": law.area}
    for page in PAGES:
        write_aside(folder / page, environment.get_template(f"{page}.j2").render(values).encode())
    before, rest = readme.read_text(encoding="utf-8").split(MARKERS[0])
    block, after = (
        environment.get_template("README.md.j2").render(values),
        rest.split(MARKERS[1])[1],
    )
    write_aside(
        readme, "".join([before, MARKERS[0], "\n", block, "\n", MARKERS[1], after]).encode()
    )
