"""Run every experiment, then draw every figure and table, and put them on one page.

`--preset quick`, the default, needs no data, no network and no GPU: small runs of all scripts, on
drawn faces and on docstrings, for a first look within minutes. Everything that it writes says
"quick run". `--preset report` is the full protocol of the report with everything that this
repository adds; it says beforehand what it needs.

Each step is one script, run as from the shell. Finished steps are not run again, an interrupted one
goes on from its checkpoint, and one that fails is named at the end, when everything that does not
depend on it has been run.

In --out: `index.html`, the page; `results/`, one JSON per step, from which alone the figures and
tables beside it are drawn; `steps/`, the scripts' own folders with checkpoints, records and logs.

    uv run figures/make.py                                  all three sections, quick and offline
    uv run figures/make.py --preset report --dry-run        what the full protocol needs, and what
    of that is missing uv run figures/make.py --render                         draw what is
    committed anew, from its results
"""

import json
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import torch
from pytorch_fid.inception import FID_WEIGHTS_URL
from tqdm import tqdm

from data import celeba, newsgroups
from figures import findings, law, page, section3, section4, section5, style
from figures.cli import RunError, cli
from figures.run import pick_device, write_json
from figures.runner import ClusterOptions, Task, record, run_tasks
from figures.steps import HOUR, STEPS, Step

HERE = Path(__file__).parent
PRESET = "preset.json"
HEADINGS = {
    "quick": "Quick run: a small version of every experiment, not the report's protocol",
    "report": "",
}


@dataclass(frozen=True)
class Options(ClusterOptions):
    preset: Literal["quick", "report"] = "quick"
    """quick: minutes on two cores, offline; report: the full protocol on real data, weeks without a
    GPU"""
    dry_run: bool = False
    """say what would be run, what it needs and what is missing, and stop"""
    render: bool = False
    """run nothing; draw figures and tables from the results in --out or, without that, the
    committed ones"""
    out: Path | None = None
    """folder for everything; None: runs/quick or runs/report"""


# --- running --------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Such as 40 s, 3 min 20 s, 5 h or 32 days."""
    if seconds >= 48 * HOUR:
        return f"{seconds / 24 / HOUR:.0f} days"
    if seconds >= 2 * HOUR:
        return f"{seconds / HOUR:.0f} h"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def requirements(out: Path) -> list[str]:
    """What the full protocol needs and whether it is here, one line each."""

    def where(path: Path | None) -> str:
        return (
            str(path)
            if path is not None and path.exists()
            else "not here; it will be downloaded, or see the README"
        )

    weights = Path(torch.hub.get_dir()) / "checkpoints" / FID_WEIGHTS_URL.rpartition("/")[2]
    device = pick_device(None)
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    return [
        f"CelebA (1.4 GB, and 2.5 GB decoded): {where(celeba.find())}",
        f"20 Newsgroups (7 MB): {where(newsgroups.find())}",
        f"Inception's weights (91 MB), for FID: {where(weights)}",
        f"disk: 10 GB at {out} and in data/; free there: "
        f"{shutil.disk_usage(there).free / 1e9:.0f} GB",
        f"GPU: {'none; the times below are for two CPU cores' if device.type == 'cpu' else device}",
    ]


def arguments(step: Step, out: Path) -> tuple[str, ...]:
    """The words of a step's command, with --resume where the script has it."""

    def place(name: re.Match) -> str:
        return str(out / "steps" / (step.name if name[1] == "self" else name[1]))

    words = shlex.split(step.command) + ["--resume"] * step.resume
    return tuple(re.sub(r"\{(.+?)\}", place, word) for word in words)


def run_steps(steps: Sequence[Step], out: Path, options: Options) -> dict[str, str]:
    """Run what is not finished; returns why, of each step that failed or could not begin.

    A step is finished if it was with the same command, and from the same runs of the steps that it
    goes on from. Raises RunError if `out` is of another preset.
    """
    path = out / PRESET
    if path.exists() and (before := json.loads(path.read_bytes())["preset"]) != options.preset:
        raise RunError(f"{out} holds a run of --preset {before}; choose another --out")
    write_json(path, {"preset": options.preset})
    finished, waiting = set(), []
    for step in steps:
        folder = out / "steps" / step.name
        entry, ready = record(folder), finished.issuperset(step.needs)
        if ready and entry.get("command") == step.command and entry["finished"]:
            finished.add(step.name)
            print(f"{step.name}: finished before, in {duration(entry['seconds'])}")
            continue
        if folder.exists() and (not ready or entry.get("command", step.command) != step.command):
            # Scripts do not go on with other options, nor from other runs than they began with.
            folder.rename(
                folder.with_name(f"{folder.name} until {datetime.now():%Y-%m-%d %H.%M.%S.%f}")
            )
        (out / "results" / f"{step.name}.json").unlink(missing_ok=True)
        waiting.append(step)
    alone, tasks = options.jobs == 1 and options.scheduler is None, []
    for i, step in enumerate(waiting):
        command, left = arguments(step, out), sum(later.seconds for later in waiting[i:])
        title = f"\n[{len(steps) - len(waiting) + i + 1}/{len(steps)}] {step.name}: about {duration(step.seconds)}; "
        title += f"all that is left: about {duration(left)}\n$ {shlex.join(command)}"
        needs = tuple(need for need in step.needs if need not in finished)
        task = Task(step.name, command, out / "steps" / step.name, needs, template=step.command)
        tasks.append(replace(task, title=title) if alone else task)
    with tqdm(
        total=len(steps), initial=len(finished), desc="steps", unit="step", disable=alone
    ) as bar:

        def ended(name: str, reason: str | None) -> None:
            bar.set_postfix_str(name)
            bar.update()

        try:
            failed = run_tasks(tasks, options, ended)
        except BaseException:
            print(f"\nwhat is finished is kept in {out}; the same command goes on from there")
            raise
    for step in steps:
        result = out / "steps" / step.name / "result.json"
        if step.name not in failed and not result.exists():
            failed[step.name] = "it left no result"
        elif step.name not in failed:
            (out / "results" / step.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(result, out / "results" / f"{step.name}.json")
            for name, case in law.split(json.loads(result.read_bytes())).items():
                write_json(out / "results" / "law" / f"{name}.json", case)
    return failed


# --- drawing --------------------------------------------------------------------------------------


def write_claims(claims: Sequence[findings.Claim], folder: Path) -> None:
    caption = (
        "What joint training did: nats per point, image or document, means over seeds, and the "
        "change with its 95% interval over seeds, if there are several. Section 3: settings of "
        "the report's text. Section 4: the report has 1,000,000 iterations; drawn faces are "
        "those of section4.md, sigma 0.5, with encoders after 1,000 steps of the ELBO, log p(x) "
        "of 256 images and the ELBO of 500. Section 5: training documents, all codes of eight "
        "bits summed over; log p(x) is compared with likelihood training for as long."
    )
    header = ("section", "quantity", "seeds", "before, or without", "after", "change", "as claimed")
    style.write_table(folder / "claims", caption, header, [claim.row() for claim in claims])


def render(folder: Path) -> list[str]:
    """Draw every figure and table into `folder` from folder/results; returns those whose results
    are not there."""
    results = findings.read(folder / "results")

    def first(*names: str) -> Mapping:
        return next((results[name] for name in names if name in results), {})

    mixture, dcgan = first("mixture_released", "mixture"), first("celeba/dcgan")
    exact = {name: result for name, result in results.items() if name.startswith("exact_")}
    curves = first("hashing/e1_b64_d0", "hashing/e1_b8_d0")
    stages = {
        name: results[f"celeba/{name}"] for name in section4.STAGES if f"celeba/{name}" in results
    }
    tracked = {name: result for name, result in stages.items() if not name.startswith("encoder")}
    inference = {
        n.removeprefix("inference/"): r for n, r in results.items() if n.startswith("inference/")
    }
    if inference and "gap_encoder" in first("celeba/joint_report").get(
        "history", ()
    ):  # the quick run's
        inference.setdefault("encoder", results["celeba/joint_report"])
    cases = {
        n.removeprefix("law/"): r["metrics"] for n, r in results.items() if n.startswith("law/")
    }
    rows = stages if "encoder_report" in stages else {}
    cells = section5.read_cells(folder / "results" / "hashing")
    parts = {
        name: results[f"parts/{name}"] for name in section5.PARTS if f"parts/{name}" in results
    }
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
        *((("inference", section4.draw_inference, (inference,)),) if inference else ()),
        *((("evidence", section4.write_inference, (inference,)),) if inference else ()),
        ("table1", section4.write_table1, (dcgan, stages)),
        ("estimator_variance", section5.draw_estimator_variance, (first("disarm"),)),
        ("hashing_curves", section5.draw_hashing_curves, (curves,)),
        *(
            (f"hashing_{n}", section5.draw_exact, (result,))
            for n, result in exact.items()
            if n.startswith("exact_d")
        ),
        ("exact", section5.write_exact, (exact,)),
        ("section5", section5.draw_section5, (list(exact.values()), section5.shown(cells))),
        *((("best_parts", section5.write_parts, (parts,)),) if parts else ()),
        ("table2, table3 and hashing_cells", section5.write_tables, (cells,)),
        ("retrieval", section5.write_retrieval, (cells,)),
        ("one_law", law.draw, (cases,)),
        ("law", law.write_table, (cases,)),
        ("claims", write_claims, (findings.claims(results),)),
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
        preset = (
            json.loads((folder / PRESET).read_bytes())["preset"]
            if (folder / PRESET).exists()
            else "report"
        )
        with style.headed(HEADINGS[preset]):
            missing = render(folder)
        if folder == HERE:
            findings.write_pages(folder, HERE.parent / "README.md")
        else:
            page.write(folder, preset)
        if missing:
            raise RunError(
                f"no results for {', '.join(missing)}; the other figures and tables are in {folder}"
            )
        print(f"figures and tables drawn in {folder}")
        return
    steps, out = STEPS[options.preset], (options.out or Path("runs") / options.preset)
    if options.preset == "report":
        print("\n".join(requirements(out)))
    print(
        f"{len(steps)} steps into {out}, in all about "
        f"{duration(sum(step.seconds for step in steps))} on two cores"
    )
    if options.dry_run:
        for step in steps:
            print(f"  {step.name}, {duration(step.seconds)}: {shlex.join(arguments(step, out))}")
        return
    out, start = out.absolute(), time.perf_counter()
    failed = run_steps(steps, out, options)
    with style.headed(HEADINGS[options.preset]):
        missing = render(out)
    index = page.write(out, options.preset)
    if "claims" not in missing:
        print((out / "claims.md").read_text(encoding="utf-8"))
    print(f"{duration(time.perf_counter() - start)}; figures and tables in {out}")
    print(f"all on one page, for a browser: {index.as_uri()}")
    if failed:
        reasons = "; ".join(f"{name} ({why})" for name, why in failed.items())
        lacking = f"; not drawn: {', '.join(missing)}" if missing else ""
        raise RunError(f"{len(failed)} of {len(steps)} steps failed: {reasons}{lacking}")


RUNS = (("make", main, Options(), "run, draw, and put on one page"),)

if __name__ == "__main__":
    cli(__doc__, *RUNS)
