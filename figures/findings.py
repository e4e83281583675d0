"""What was found: numbers of several results together, for the pages."""

import itertools
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import law, reference, section3, section4
from figures.cli import RunError
from figures.run import half_width, interval

PUBLISHED = (*section3.REPORT.items(), *section3.RELEASED_CODE.items())
BITS, LAYERS = (8, 16, 32, 64), (0, 1, 2)
KEYS = {"config", "metrics", "environment", "seconds", "history"}  # of a result
SEEDS = ("", "_seed1", "_seed2")  # ends of the names of Section 4's runs of three seeds
ARMS = (  # Section 4 without an encoder
    ("drawn faces", [f"factorized{seed}" for seed in SEEDS]),
    ("drawn faces, GAN trained less", [f"factorized_long_seed{seed}" for seed in range(8)]),
    ("sigma 1", ["factorized_long_sigma1_seed0"]),
    ("sigma 0.2", ["factorized_long_sigma0.2_seed0"]),
    ("photographs", ["photos_factorized"]),
)
LAW_EXAMPLES = (  # rows of the README's table
    ("3: variance 0.5", "mixture_0.5_3"),
    ("4: z in the plane, sigma 0.6", "plane3_factorized_own_0.6_seed0"),
    ("5: two words of each document", "hashing_free_b4_n2_seed1"),
)


def read(folder: Path) -> dict[str, dict]:
    """Every result below a folder by its path there, without the section: celeba/dcgan, say.

    Hidden files are passed over. Raises RunError for a file that is no result.
    """
    results = {}
    for path in sorted(folder.rglob("*.json")):
        place = path.relative_to(folder)
        if any(part.startswith(".") for part in place.parts):
            continue
        try:
            result = json.loads(path.read_bytes())
        except ValueError as error:
            raise RunError(f"{path} is no result, or not all of one: {error}") from error
        if not isinstance(result, dict) or not result.keys() >= KEYS:
            raise RunError(f"{path} is no result: it lacks {', '.join(sorted(KEYS))}")
        results[re.sub(r"^section\d/", "", place.with_suffix("").as_posix())] = result
    return results


def spread(values: Sequence[float]) -> str:
    """Smallest to largest."""
    if not values:
        return "-"
    low, high = (f"{value:,.2f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def exact_runs(results: Mapping[str, dict], stage: str, layers: int) -> list[str]:
    """Runs of `hashing.py exact` with d hidden layers that have a stage, by seed; not long ones."""
    found = [
        name
        for name, result in results.items()
        if name.startswith("exact_") and "long" not in name
        if result["config"]["decoder_layers"] == layers and stage in result["metrics"]
    ]
    return sorted(found, key=lambda name: results[name]["config"]["seed"])


def means(alike: Sequence[dict]) -> dict[str, Any]:
    """Means over cases of the law that differ in the seed only."""
    found = {"of": alike[0]["of"], "value": alike[0]["value"], "seeds": len(alike)}
    quantities = {"narrowing": law.narrowing, "cost": law.cost, "area": law.area}
    return found | {key: statistics.mean(map(of, alike)) for key, of in quantities.items()}


def values(results: Mapping[str, dict]) -> dict[str, Any]:
    """What the templates see."""
    laws = {n.removeprefix("law/"): r["metrics"] for n, r in results.items() if "law/" in n}
    large = [case for case in laws.values() if max(law.cost(case), law.area(case)) > 0.002]
    all_metrics = {name: result["metrics"] for name, result in results.items()}
    found: dict[str, Any] = {
        "r": results,
        "m": all_metrics,
        "ran": lambda *names: all(name in results for name in names),
        "laws": laws,
        "large": large,
        "close": [
            case for case in large if abs(law.cost(case) - law.area(case)) <= 0.05 * law.area(case)
        ],
        "law_examples": [(words, laws[name]) for words, name in LAW_EXAMPLES if name in laws],
        "text_costs": [
            metrics["truth"]["evidence"] - metrics["joint"]["evidence"]
            for name, metrics in all_metrics.items()
            if re.fullmatch(r"mixture(_seed\d+)?", name)
        ],
        "mixtures": [case for case in law.ordered(laws.values()) if case["section"] == 3],
        "spread": spread,
    }
    if "mixture_released" in results:
        ours = all_metrics["mixture_released"]
        published = [(*key.split("."), value) for key, value in PUBLISHED]
        found["misfit"] = max(abs(ours[stage][key] - value) for stage, key, value in published)
    found |= {"cost": law.cost, "narrowing": law.narrowing, "area": law.area}
    return found | of_section4(results, laws) | of_section5(results, laws)


def of_section4(results: Mapping[str, dict], laws: Mapping[str, dict]) -> dict[str, Any]:
    """What the page of Section 4 says of runs without an encoder, and of the plane."""
    runs = {n.removeprefix("inference/"): r for n, r in results.items() if "inference/" in n}

    def arm(words: str, names: Sequence[str]) -> dict[str, Any]:
        """Runs of several seeds, what they lost beyond those with full Gaussians, and by how much
        their gap narrowed beyond that of these: means, and texts with intervals, over seeds, or of
        one seed over images.
        """
        own = [runs[name] for name in names]
        pairs = [(run, full) for run in own if (full := section4.control(run, runs))]
        beyond = [found for run in own if (found := section4.beyond_full(run, runs))]
        assert len(pairs) == len(beyond) == len(own)
        gaps = [(section4.own_gap(a), b["history"]["gap_factorized"]) for a, b in pairs]
        bounds = [gap[0] - gap[-1] - (control[0] - control[-1]) for gap, control in gaps]
        late = [section4.last_quarter(b) - section4.last_quarter(a) for a, b in pairs]
        costs = [cost for cost, _ in beyond]
        several, cost = len(names) > 1, statistics.mean(costs)
        return {
            "words": words,
            "seeds": len(names),
            "steps": own[0]["history"]["iteration"][-1],
            "start": statistics.mean(gap[0] for gap, _ in gaps),
            "bound": interval(bounds, 2) if several else f"{bounds[0]:.2f}",
            "mean_bound": statistics.mean(bounds),
            "cost": interval(costs, 2) if several else "{:.2f} ± {:.2f}".format(*beyond[0]),
            "share": cost / statistics.mean(bounds),
            "late": statistics.mean(late),
            "holds": several and cost > half_width(costs),
        }

    controlled = [name for name, run in runs.items() if section4.control(run, runs)]
    arms = [(words, [name for name in names if name in controlled]) for words, names in ARMS]
    arms = {words: arm(words, names) for words, names in arms if names}
    encoders = [name for seed in SEEDS if (name := f"encoder_1000{seed}") in controlled]
    plane = {name: case for name, case in laws.items() if case["section"] == 4 and "fresh" in case}
    return {
        "arms": arms,
        "encoders": arm("encoders", encoders) if len(encoders) == len(SEEDS) else None,
        "planes": sorted(map(means, law.groups(plane)), key=lambda case: len(case["of"])),
        "finer": max(
            (
                abs(c["finer_evidence"][i] - c["evidence"][i])
                for c in plane.values()
                if c["settled"]
                for i in (0, -1)
            ),
            default=0.0,
        ),
    }


def of_section5(results: Mapping[str, dict], laws: Mapping[str, dict]) -> dict[str, Any]:
    """What the page of Section 5 says of cells, of sums over all codes, and of short texts."""
    cells = {n.removeprefix("hashing/"): r for n, r in results.items() if "hashing/" in n}
    found = {"lengths": lengths_table(laws), "lengths_of": ""}
    if short := results.get("law/hashing_free_b4_n2_seed1"):
        documents, words = short["metrics"]["documents"], short["config"]["words"]
        found["lengths_of"] = f"{documents:,} documents, {words} words"
    return found | of_cells(cells) | of_exact(results)


def paired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Mean difference and half width of its interval."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    return statistics.mean(differences), half_width(differences)


def of_cells(cells: Mapping[str, dict]) -> dict[str, Any]:
    """Of the cells of Tables 2 and 3, and of those beside them, if all of these are there."""
    places = list(itertools.product(BITS, LAYERS))
    ends = [f"b{bits}_d{layers}" for bits, layers in places]
    metrics = {name: cell["metrics"] for name, cell in cells.items()}

    def readings(encoder: str) -> dict[str, list[float]]:
        """The report's test losses less ours in cells of its epochs, by either reading."""
        full = {place: metrics[f"{encoder}_{end}"] for place, end in zip(places, ends, strict=True)}
        full = {p: m for p, m in full.items() if m["epochs"] == reference.SECTION5_EPOCHS}
        return {
            f"{reading}_off": [reference.TABLE3[encoder, *p] - m[key] for p, m in full.items()]
            for reading, key in (("counts", "test_counts_min"), ("frequencies", "test_min"))
        }

    def early(name: str) -> float:
        """Minimum of the test loss over the first 300 epochs."""
        return min(cells[name]["history"]["test"][:300])

    held_out = [f"e1_{end}_heldout0.1" for end in ends]
    repeated = [f"e1_b64_d0{arm}{i}" for arm in ("", "_arm") for i in ("", "_seed2", "_seed3")]
    needed = {f"{e}_{end}" for e in ("e1", "e2", "e3", "e4") for end in ends}
    if not needed.union(held_out, repeated) <= cells.keys():
        return {}
    e1 = {place: metrics[f"e1_{end}"] for place, end in zip(places, ends, strict=True)}
    losses = [metrics[name]["test_min"] for name in repeated]
    return {
        "readings": readings,
        "e4_less_e1": max(abs(early(f"e4_{end}") - early(f"e1_{end}")) for end in ends),
        "e1_misfit": max(abs(m["test_min"] - reference.TABLE3["e1", *p]) for p, m in e1.items()),
        "chosen": [metrics[n]["test_selected"] - metrics[n]["test_min"] for n in held_out],
        "arm_gain": paired(losses[:3], losses[3:]),
    }


def of_exact(results: Mapping[str, dict]) -> dict[str, Any]:
    """Of the runs of `hashing.py exact`; some of it only of the whole report."""

    def train(run: str, stage: str) -> dict[str, float]:
        return results[run]["metrics"][stage]["train"]

    def gaps(stage: str, layers: int) -> list[float]:
        return [train(run, stage)["gap"] for run in exact_runs(results, stage, layers)]

    def lost(run: str, stage: str) -> float:
        """Train likelihood of joint training below likelihood training for as long."""
        likelihoods = [train(run, s)["log_likelihood"] for s in ("likelihood_on", stage)]
        return likelihoods[0] - likelihoods[1]

    def lost_at(stage: str, layers: int) -> list[float]:
        return [lost(run, stage) for run in exact_runs(results, stage, layers)]

    def seeds_of(stage: str) -> str:
        """How many seeds a stage has, by d."""
        counts = [len(exact_runs(results, stage, layers)) for layers in LAYERS]
        return " or ".join(map(str, sorted({min(counts), max(counts)})))

    found: dict[str, Any] = {"gaps": gaps, "lost_at": lost_at, "seeds_of": seeds_of}
    by_depth = [exact_runs(results, "e1_regressed_joint", layers) for layers in LAYERS]
    if "exact_long" not in results or not all(by_depth) or len(by_depth[0]) < 2:  # for an interval
        return found
    runs = [*itertools.chain(*by_depth), "exact_long"]
    # Train ELBOs of joint training, from encoders fitted by the ELBO and by regression: where the
    # second is higher, the first run was not at its optimum.
    pairs = [[train(run, f"e1{s}_joint")["elbo"] for s in ("", "_regressed")] for run in runs]
    return found | {
        "family": max(train(run, "e1_frozen")["factorization"] for run in runs),
        "regression_gap": max(train(run, "e1_regressed")["gap"] for run in runs),
        "from_regression": [lost(run, "e1_regressed_joint") for run in runs],
        "shortfall": max(regressed - fitted for fitted, regressed in pairs),
        "worse_at_d0": paired(lost_at("e1_regressed_joint", 0), lost_at("e1_joint", 0)),
    }


def lengths_table(laws: Mapping[str, dict]) -> list[tuple[int, list[str]]]:
    """Rows of n: mean and interval over seeds of gap, narrowing and cost of a free decoder, and of
    the cost of a log-linear one.
    """
    rows: dict[int, list[str]] = {}
    found = {(alike[0]["of"], alike[0]["value"]): alike for alike in law.groups(laws)}
    columns = (("free", lambda case: case["gap"][0]), ("free", law.narrowing))
    columns += (("free", law.cost), ("linear", law.cost))
    for n in sorted({case["value"] for case in laws.values() if case["section"] == 5}):
        alike = [found.get((f"{decoder} decoder, b = 4", n)) for decoder, _ in columns]
        pairs = zip(alike, columns, strict=True)
        rows[n] = [law.of_seeds(map(of, some)) if some else "-" for some, (_, of) in pairs]
    return list(rows.items())
