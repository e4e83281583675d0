"""Run every experiment, then draw every figure and table: `uv run figures/make.py`.

`--preset quick`, the default, needs no data, no network and no GPU: small runs of all scripts, on drawn faces and on
docstrings, for a first look within minutes. Everything that it writes says "quick run". `--preset paper` is the full
protocol of the report with everything that this repository adds; it says beforehand what it needs.

Each step is one script, run as from the shell. Steps that are done are kept, an interrupted one goes on from its
checkpoint, and one that fails is named at the end, when everything that does not depend on it has been run.

In --out: `results/`, one JSON a step and one a cell of a sweep, from which alone the figures and tables beside it are
drawn; `steps/`, the scripts' own folders with checkpoints and logs; `steps.json`, commands and times.

`--render` runs nothing and draws the committed figures and tables anew, in this folder, from the committed results.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pytorch_fid.inception import FID_WEIGHTS_URL
from tqdm import tqdm

from data import celeba, newsgroups
from figures import section3, section4, section5, style
from figures.run import RunError, Terminated, cli, pick_device, write_json

HERE = Path(__file__).parent
RECORD = "steps.json"
HEADINGS = {"quick": "Quick run: a small version of every experiment, not the report's protocol", "paper": ""}


@dataclass(frozen=True)
class Options:
    preset: Literal["quick", "paper"] = "quick"
    """quick: minutes on two cores, offline; paper: the full protocol with real data, which takes weeks without a GPU"""
    dry_run: bool = False
    """say what would be run, what it needs and what is missing, and stop"""
    render: bool = False
    """run nothing; draw figures and tables from the results in --out or, without that, the committed ones"""
    out: Path | None = None
    """folder for everything; default: runs/quick or runs/paper"""

    GROUPS: ClassVar = {"what to do": "preset dry-run render", "where": "out"}
    EXAMPLES: ClassVar = (
        ("", "all three sections, quick and offline"),
        ("--preset paper --dry-run", "what the full protocol needs, and what of that is missing"),
    )


@dataclass(frozen=True)
class Step:
    """One run of a script. `command` may name the folder of an earlier step as {name}, and its own as {self}."""

    name: str  # of its result in results/
    command: str
    seconds: float  # wall time on two cores, roughly; measured for quick, from timed steps for paper
    needs: tuple[str, ...] = ()  # steps that it goes on from
    resume: bool = True  # whether the script has --resume


SWEEP = "hashing.py sweep --results {self}/results --tables {self} --out {self}/cells"
BEST_HELD_OUT = (  # --preset best on nine tenths of the training documents, without --refine and --last
    "hashing.py --epochs 130 --fine-epochs 70 --pairs 1 --lr 3e-3 --weight-decay 1e-3 --word-dropout 0.5 "
    "--average 0.998 --prior autoregressive --held-out 0.1"
)
HOUR = 3600
STEPS = {
    "quick": (
        Step("mixture", "mixture.py --preset quick --out {self}", 22),
        Step("disarm", "disarm.py --out {self}", 10, resume=False),
        Step("celeba/dcgan", "dcgan.py --preset quick --out {self}", 65),
        Step(
            "celeba/encoder_paper",
            "celeba_encoder.py --preset quick --ground-truth {celeba/dcgan}/ground_truth.pt --out {self}",
            41,
            needs=("celeba/dcgan",),
        ),
        Step(
            "celeba/elbo_paper",
            "celeba_joint.py --preset quick --freeze-decoder --encoder {celeba/encoder_paper}/model.pt --out {self}",
            48,
            needs=("celeba/encoder_paper",),
        ),
        Step(
            "celeba/joint_paper",
            "celeba_joint.py --preset quick --encoder {celeba/encoder_paper}/model.pt --out {self}",
            55,
            needs=("celeba/encoder_paper",),
        ),
        Step(
            "hashing",
            f"{SWEEP} --corpus docstrings --encoders e1 e3 e4 --bits 8 --decoder-layers 0 --epochs 20 --fine-epochs 0",
            58,
            resume=False,
        ),
        Step(
            "exact_d0",
            "hashing.py exact --corpus docstrings --encoders e1 e3 --bits 6 --likelihood-epochs 20 --encoder-epochs 10 "
            "--joint-epochs 20 --scratch-epochs 20 --out {self}",
            44,
        ),
    ),
    "paper": (
        Step("mixture", "mixture.py --out {self}", 240),
        Step("mixture_released", "mixture.py --points-per-component 2000 --joint-lr 1e-4 --out {self}", 720),
        Step("disarm", "disarm.py --out {self}", 10, resume=False),
        Step("exact_d0", "hashing.py exact --out {self}", 1.5 * HOUR),
        *(
            Step(
                f"exact_d{layers}",
                f"hashing.py exact --decoder-layers {layers} --likelihood-epochs 60 --encoder-epochs 40 "
                "--joint-epochs 40 --scratch-epochs 60 --out {self}",
                HOUR,
            )
            for layers in (1, 2)
        ),
        Step(
            "exact_long",
            "hashing.py exact --encoders e1 --decoder-layers 2 --likelihood-epochs 60 --encoder-epochs 200 "
            "--joint-epochs 40 --scratch-epochs 1 --out {self}",
            HOUR / 2,
        ),
        Step("exact_seed2_d0", "hashing.py exact --encoders e1 --seed 2 --out {self}", 0.6 * HOUR),
        *(
            Step(
                f"exact_seed2_d{layers}",
                f"hashing.py exact --encoders e1 --decoder-layers {layers} --likelihood-epochs 60 --encoder-epochs 40 "
                "--joint-epochs 40 --scratch-epochs 60 --seed 2 --out {self}",
                HOUR / 3,
            )
            for layers in (1, 2)
        ),
        *(Step(f"best_seed{i}", f"hashing.py --preset best --seed {i} --out {{self}}", 800) for i in (1, 2, 3)),
        *(
            Step(f"parts/{name}", f"{BEST_HELD_OUT} {option} --out {{self}}", 300)
            for name, option in (
                *(("full", ""), ("dropout", "--word-dropout 0"), ("decay", "--weight-decay 0")),
                *(("average", "--average 0"), ("prior", "--prior uniform"), ("rate", "--lr 1e-3")),
            )
        ),
        Step("hashing", SWEEP, 100 * HOUR, resume=False),
        Step(
            "hashing_estimators",
            f"{SWEEP} --encoders e1 --bits 64 --decoder-layers 0 --estimators arm reinforce --seeds 1 2 3",
            6 * HOUR,
            resume=False,
        ),
        Step(
            "hashing_disarm_seeds",
            f"{SWEEP} --encoders e1 --bits 64 --decoder-layers 0 --seeds 2 3",
            2 * HOUR,
            resume=False,
        ),
        Step(
            "hashing_seeds",
            f"{SWEEP} --encoders e1 e3 e4 --bits 8 16 --decoder-layers 0 --seeds 2 3",
            12 * HOUR,
            resume=False,
        ),
        Step("hashing_held_out", f"{SWEEP} --encoders e1 --held-out 0.1", 25 * HOUR, resume=False),
        Step("hashing_rate", f"{SWEEP} --encoders e3 --encoder-lr 0.1", 25 * HOUR, resume=False),
        *(
            Step(f"hashing_rate_{name}", f"{SWEEP} --bits 64 {options}", hours * HOUR, resume=False)
            for name, options, hours in (
                ("e1", "--encoders e1 --decoder-layers 0 1 --encoder-lr 0.01", 4),
                ("e1_lower", "--encoders e1 --decoder-layers 0 --encoder-lr 0.003", 1),
                ("e2", "--encoders e2 --decoder-layers 0 --encoder-lr 0.01", 2),
            )
        ),
        Step("celeba/dcgan", "dcgan.py --out {self}", 25 * HOUR),
        *(
            Step(
                f"celeba/{name}",
                f"celeba_encoder.py --ground-truth {{celeba/dcgan}}/ground_truth.pt{option} --out {{self}}",
                68 * HOUR,
                needs=("celeba/dcgan",),
            )
            for name, option in (("encoder_paper", ""), ("encoder_published", " --protocol published"))
        ),
        *(
            Step(
                f"celeba/{name}",
                f"celeba_joint.py --encoder {{celeba/{encoder}}}/model.pt{option} --out {{self}}",
                114 * HOUR,
                needs=(f"celeba/{encoder}",),
            )
            for name, encoder, option in (
                ("joint_paper", "encoder_paper", ""),
                ("elbo_paper", "encoder_paper", " --freeze-decoder"),
                ("joint_paper_sigma", "encoder_paper", " --learn-sigma"),
                ("joint_published", "encoder_published", ""),
            )
        ),
    ),
}


# --- running --------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Such as 40 s, 3 min 20 s, 5 h or 32 days."""
    if seconds >= 48 * HOUR:
        return f"{seconds / 24 / HOUR:.0f} days"
    if seconds >= 2 * HOUR:
        return f"{seconds / HOUR:.0f} h"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def requirements(out: Path) -> list[str]:
    """What the full protocol needs and whether it is here, a line each."""

    def where(path: Path | None) -> str:
        return str(path) if path is not None and path.exists() else "not here; it will be downloaded, or see the README"

    weights = Path(torch.hub.get_dir()) / "checkpoints" / FID_WEIGHTS_URL.rpartition("/")[2]
    device = pick_device(None)
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    return [
        f"CelebA (1.4 GB, and 2.5 GB decoded): {where(celeba.find())}",
        f"20 Newsgroups (7 MB): {where(newsgroups.find())}",
        f"Inception's weights (91 MB), for FID: {where(weights)}",
        f"disk: 10 GB at {out} and in data/; free there: {shutil.disk_usage(there).free / 1e9:.0f} GB",
        f"GPU: {'none; the times below are for two CPU cores' if device.type == 'cpu' else device}",
    ]


def run_steps(steps: Sequence[Step], out: Path, preset: str) -> dict[str, str]:
    """Run what is not done; returns why, of each step that failed or could not begin.

    A step is done if it was with the same command, and from the same runs of the steps that it goes on from.
    Raises RunError if `out` is of another preset.
    """
    path = out / RECORD
    record = json.loads(path.read_text()) if path.exists() else {"preset": preset, "steps": {}}
    if record["preset"] != preset:
        raise RunError(f"{out} is of --preset {record['preset']}; name another --out")
    kept, failed = record["steps"], {}
    pace: list[tuple[float, float]] = []  # expected and measured seconds of steps run now, from their beginning
    for number, step in enumerate(steps, start=1):
        title = f"[{number}/{len(steps)}] {step.name}"
        before = kept.get(step.name, {})
        origin = {"command": step.command, "from": [kept.get(need, {}).get("begun") for need in step.needs]}
        again = any(before.get(key) != value for key, value in origin.items())
        if not again and before["done"]:
            print(f"{title}: done before, in {duration(before['seconds'])}")
            continue
        if lost := [need for need in step.needs if need in failed]:
            failed[step.name] = f"goes on from {lost[0]}"
            print(f"{title}: not run, it goes on from {lost[0]}")
            continue
        slower = sum(measured for _, measured in pace) / sum(expected for expected, _ in pace) if pace else 1.0
        waiting = [later for later in steps[number - 1 :] if not kept.get(later.name, {}).get("done")]
        left = duration(slower * sum(later.seconds for later in {step, *waiting}))
        print(f"\n{title}: about {duration(slower * step.seconds)}; all that is left: about {left}")
        folder = out / "steps" / step.name
        for old in results(step, out):
            old.unlink()
        now = f"{datetime.now():%Y-%m-%d %H.%M.%S.%f}"
        if again and folder.exists():  # scripts do not go on with other options
            folder.rename(folder.with_name(f"{folder.name} until {now}"))
        fresh, start = not folder.exists(), time.perf_counter()
        begun = origin | ({"begun": now, "seconds": 0.0} if again else before) | {"done": False}
        kept[step.name] = begun
        write_json(path, record)
        command = arguments(step, out)
        print(f"$ {shlex.join(command)}", flush=True)
        child = subprocess.Popen([sys.executable, str(HERE.parent / command[0]), *command[1:]])
        try:
            code = child.wait()
        except (KeyboardInterrupt, Terminated) as stop:
            if isinstance(stop, Terminated):  # `kill` reaches this process only, Ctrl-C the script, too
                child.terminate()
            child.wait()
            print(f"\nwhat is done is kept in {out}; the same command goes on from there")
            raise
        finally:
            seconds = time.perf_counter() - start
            kept[step.name] = begun | {"seconds": round(begun["seconds"] + seconds, 3)}
            write_json(path, record)
        if code or not collect(step, out):
            failed[step.name] = f"exit code {code}" if code else "it left no result"
            continue
        kept[step.name]["done"] = True
        write_json(path, record)
        if fresh:
            pace.append((step.seconds, seconds))
    return failed


def arguments(step: Step, out: Path) -> list[str]:
    """The words of a step's command, with --resume where the script has it."""

    def place(name: re.Match) -> str:
        return str(out / "steps" / (step.name if name[1] == "self" else name[1]))

    return [re.sub(r"\{(.+?)\}", place, word) for word in shlex.split(step.command) + ["--resume"] * step.resume]


def results(step: Step, out: Path) -> list[Path]:
    """Where a step's result, or the cells of its sweep, have been put for drawing."""
    single = out / "results" / f"{step.name}.json"
    cells = (out / "steps" / step.name / "results").glob("*.json")
    return [path for path in (single, *(out / "results/hashing" / cell.name for cell in cells)) if path.exists()]


def collect(step: Step, out: Path) -> bool:
    """Copy the result of a step, or the cells of its sweep, to where figures are drawn from; False if there is none."""
    folder = out / "steps" / step.name
    single, cells = folder / "result.json", folder / "results"
    if cells.is_dir():
        shutil.copytree(cells, out / "results" / "hashing", dirs_exist_ok=True)
    elif single.exists():
        path = out / "results" / f"{step.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(single, path)
    return cells.is_dir() or single.exists()


# --- drawing --------------------------------------------------------------------------------------------------------


def render(folder: Path) -> list[str]:
    """Draw every figure and table into `folder` from folder/results; returns those whose results are not there."""
    paths = sorted((folder / "results").rglob("*.json"))
    found = {path.relative_to(folder / "results").with_suffix("").as_posix(): path for path in paths}

    def first(*names: str) -> Mapping | None:
        path = next((found[name] for name in names if name in found), None)
        return path and json.loads(path.read_text())

    mixture = first("mixture_released", "mixture")
    dcgan, exact = first("celeba/dcgan"), {name: first(name) for name in sorted(found) if name.startswith("exact_")}
    drawn = {name: result for name, result in exact.items() if name.startswith("exact_d")}
    curves = first("hashing_e1_64_0", "hashing/e1_b64_d0", "hashing/e1_b8_d0")
    stages = {name: result for name in section4.STAGES if (result := first(f"celeba/{name}"))}
    tracked = {name: result for name, result in stages.items() if not name.startswith("encoder")}
    rows = stages if "encoder_paper" in stages else {}
    cells = section5.read_cells(folder / "results" / "hashing")
    parts = {name: result for name in section5.PARTS if (result := first(f"parts/{name}"))}
    if parts and "e1_b64_d0_heldout0.1" in cells:
        parts["report"] = cells["e1_b64_d0_heldout0.1"]
    plan = (
        ("figure1", section3.draw_figure1, (mixture,)),
        ("mixture_gap", section3.draw_gap, (mixture,)),
        ("mixture_curves", section3.draw_curves, (mixture,)),
        ("faces", section4.draw_contact_sheet, ()),
        ("dcgan_curves", section4.draw_dcgan, (dcgan,)),
        ("dcgan_grid", section4.draw_grid, (dcgan,)),
        ("section4", section4.draw_section4, (tracked,)),
        ("celeba_rows", section4.draw_rows, (rows,)),
        ("table1", section4.write_table1, (dcgan, stages)),
        ("estimator_variance", section5.draw_estimator_variance, (first("disarm"),)),
        ("hashing_curves", section5.draw_hashing_curves, (curves,)),
        *((f"hashing_{name}", section5.draw_exact, (result,)) for name, result in drawn.items()),
        ("exact", section5.write_exact, (exact,)),
        ("section5", section5.draw_section5, (list(exact.values()), section5.shown(cells))),
        *((("best_parts", section5.write_parts, (parts,)),) if parts else ()),
        ("table2, table3 and hashing_cells", section5.write_tables, (cells,)),
        ("retrieval", section5.write_retrieval, (cells,)),
    )
    missing = []
    for name, draw, inputs in tqdm(plan, desc="drawing", unit="figure"):
        if all(inputs):
            draw(*inputs, folder)
        else:
            missing.append(name)
    return missing


def main(options: Options) -> None:
    if options.render:
        folder = options.out or HERE
        record = folder / RECORD
        preset = json.loads(record.read_text())["preset"] if record.exists() else "paper"
        with style.headed(HEADINGS[preset]):
            missing = render(folder)
        if missing:
            raise RunError(f"no results for {', '.join(missing)}; the other figures and tables are in {folder}")
        print(f"figures and tables drawn in {os.path.relpath(folder)}")
        return
    steps, out = STEPS[options.preset], (options.out or Path("runs") / options.preset)
    if options.preset == "paper":
        print("\n".join(requirements(out)))
    print(f"{len(steps)} steps into {out}, in all about {duration(sum(step.seconds for step in steps))} on two cores")
    if options.dry_run:
        for step in steps:
            print(f"  {step.name}, {duration(step.seconds)}: {shlex.join(arguments(step, out))}")
        return
    out = out.absolute()
    start = time.perf_counter()
    failed = run_steps(steps, out, options.preset)
    with style.headed(HEADINGS[options.preset]):
        missing = render(out)
    print(f"{duration(time.perf_counter() - start)}; figures and tables in {os.path.relpath(out)}")
    if failed:
        reasons = "; ".join(f"{name} ({why})" for name, why in failed.items())
        lacking = f"; not drawn: {', '.join(missing)}" if missing else ""
        raise RunError(f"{len(failed)} of {len(steps)} steps failed: {reasons}{lacking}")


if __name__ == "__main__":
    cli(Options, main, __doc__.splitlines()[0])
