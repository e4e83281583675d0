"""Run every experiment, then draw every figure and table, and put them on one page.

`--preset quick`, the default, needs no data, no network and no GPU: small runs of all scripts, on
drawn faces and on docstrings, for a first look within minutes. `--preset report` is the full
protocol of the report with everything that this repository adds; it says beforehand what it needs.
`--only` picks steps of either by name.

Each step is one script, run as from the shell. Finished steps are not run again, an interrupted one
goes on from its checkpoint, and one that fails is named at the end, when everything that does not
depend on it has been run.

In --out: `index.html`, the page; `results/`, one JSON per step, from which alone the figures and
tables in `section3/` to `section5/` and `law/` are drawn; `steps/`, the scripts' own folders with
checkpoints, records and logs.

    uv run figures/make.py                                all three sections, quick and offline
    uv run figures/make.py --preset report --dry-run      the full protocol: what it needs, and what
                                                          of that is missing
    uv run figures/make.py --preset report --only 'hashing/*_b64_*'
    uv run figures/make.py --render                       draw what is committed, from its results

On many machines, Dask workers in a shared checkout run the steps. Whoever reaches the scheduler's
port can run code as you: keep it inside, with --host.

    uv run dask scheduler --port 0 --scheduler-file runs/scheduler.json
    uv run dask worker --scheduler-file runs/scheduler.json --nthreads 1     on each machine
    uv run figures/make.py --preset report --scheduler runs/scheduler.json

On SLURM, figures/slurm.sh makes an array of the steps, each queued again at its time limit:

    ONLY='hashing/e1_*' sbatch --array=1-12 figures/slurm.sh
"""

import fnmatch
import json
import re
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from data import celeba, newsgroups, write_aside
from figures import cli, law
from figures.run import claim, pick_device, write_json
from figures.runner import ClusterOptions, Task, cores, record, run_tasks
from figures.steps import HOUR, STEPS, Step

HERE = Path(__file__).parent
PRESET = "preset.json"


@dataclass(frozen=True)
class Options(ClusterOptions):
    preset: Literal["quick", "report"] = "quick"
    """quick: minutes on two cores, offline; report: the full protocol, weeks without a GPU"""
    only: tuple[str, ...] = ("*",)
    """names of the steps to run, such as mixture or 'hashing/e1_*', with those they go on from"""
    dry_run: bool = False
    """say what would be run, what it needs and what is missing, and stop"""
    render: bool = False
    """run nothing; draw figures (PDF, too) and tables of results in --out or committed ones"""
    out: Path | None = None
    """folder for everything; None: runs/quick or runs/report"""


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
    from pytorch_fid.inception import FID_WEIGHTS_URL

    def where(path: Path | None, else_: str = "not here; it will be downloaded") -> str:
        return str(path) if path is not None and path.exists() else else_

    weights = Path(torch.hub.get_dir()) / "checkpoints" / FID_WEIGHTS_URL.rpartition("/")[2]
    device = pick_device(None)
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    return [
        f"CelebA (1.4 GB, and 2.5 GB decoded): {where(celeba.find(), f'not here: {celeba.PAGE}')}",
        f"20 Newsgroups (7 MB): {where(newsgroups.find())}",
        f"Inception's weights (91 MB), for FID: {where(weights)}",
        f"disk: 10 GB at {out} and data/; free: {shutil.disk_usage(there).free / 1e9:.0f} GB",
        f"GPU: {'none' if device.type == 'cpu' else device}",
    ]


def preset_of(folder: Path) -> str:
    """Of which preset a folder's results are. Raises RunError if that cannot be read."""
    path = folder / PRESET
    if not path.exists():
        return "report"
    try:
        return str(json.loads(path.read_bytes())["preset"])
    except (ValueError, KeyError, TypeError) as error:
        raise cli.RunError(f"{path} does not say which preset this folder is of") from error


def arguments(step: Step, out: Path) -> tuple[str, ...]:
    """The words of a step's command, with --resume where the script has it."""

    def place(name: re.Match) -> str:
        return str(out / "steps" / (step.name if name[1] == "self" else name[1]))

    words = shlex.split(step.command) + ["--resume"] * step.resume
    return tuple(re.sub(r"\{(.+?)\}", place, word) for word in words)


def chosen(steps: Sequence[Step], patterns: Sequence[str]) -> list[Step]:
    """The steps that match any of the patterns, and those that they go on from, in order.

    Raises RunError for a pattern that matches none.
    """
    names: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter([step.name for step in steps], pattern)
        if not found:
            raise cli.RunError(f"--only: no step is named {pattern!r}; --dry-run lists them")
        names.update(found)
    for step in reversed(steps):
        if step.name in names:
            names.update(step.needs)
    return [step for step in steps if step.name in names]


def run_steps(steps: Sequence[Step], out: Path, options: Options) -> dict[str, str]:
    """Run what is not finished; returns why, of each step that failed or could not begin.

    A step is finished if it was with the same command, and from the same runs of the steps that it
    goes on from. Raises RunError if `out` is of another preset.
    """
    claim(out)
    path = out / PRESET
    if path.exists() and (before := preset_of(out)) != options.preset:
        raise cli.RunError(f"{out} holds a run of --preset {before}; choose another --out")
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
            until = f"{datetime.now():%Y-%m-%d %H.%M.%S.%f}"
            folder.rename(folder.with_name(f"{folder.name} until {until}"))
        (out / "results" / step.result).unlink(missing_ok=True)
        waiting.append(step)
    alone, tasks = options.jobs in (None, 1) and options.scheduler is None, []
    for i, step in enumerate(waiting):
        command, left = arguments(step, out), sum(later.seconds for later in waiting[i:])
        place = f"[{len(steps) - len(waiting) + i + 1}/{len(steps)}]"
        title = f"\n{place} {step.name}: about {duration(step.seconds)}; "
        title += f"all that is left: about {duration(left)}\n$ {shlex.join(command)}"
        needs = tuple(need for need in step.needs if need not in finished)
        task = Task(step.name, command, out / "steps" / step.name, needs, template=step.command)
        tasks.append(replace(task, title=title) if alone else task)
    bar = tqdm(total=len(steps), initial=len(finished), desc="steps", unit="step", disable=alone)
    with bar:

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
            write_aside(out / "results" / step.result, result.read_bytes())
            for name, case in law.split(json.loads(result.read_bytes())).items():
                write_json(out / "results" / "law" / f"{name}.json", case)
    return failed


def draw(folder: Path, preset: str) -> list[str]:
    """Draw what there are results for in `folder`, and its pages; returns what is missing."""
    from figures import findings, page

    missing = page.draw(folder)
    if folder == HERE:
        results = findings.read(folder / "results")
        page.write_pages(folder, results, preset)
        page.write_readme(results, HERE.parent / "README.md")
    else:
        page.write(folder, preset)
    return missing


def main(options: Options) -> None:
    if options.render:
        folder = options.out or HERE
        from figures import style

        with style.plt.rc_context({"savefig.format": "pdf"}):
            missing = draw(folder, preset_of(folder))
        if missing:
            raise cli.RunError(f"no results for {', '.join(missing)}; the others are in {folder}")
        print(f"figures and tables drawn in {folder}")
        return
    steps = chosen(STEPS[options.preset], options.only)
    many = min(cores(), 4) if options.preset == "quick" else 1
    jobs = options.jobs or many
    options = replace(options, jobs=jobs)
    out = options.out or HERE.parent / "runs" / options.preset
    if options.preset == "report":
        print("\n".join(requirements(out)))
    total = duration(sum(step.seconds for step in steps) / jobs)
    where = f"{jobs} at a time"
    if options.preset == "report":
        where = "on two cores with AVX-512 and bfloat16; with AVX2 about five times as long"
    print(f"{len(steps)} steps into {out}, in all about {total}, {where}")
    if options.dry_run:
        for step in steps:
            print(f"  {step.name}, {duration(step.seconds)}: {shlex.join(arguments(step, out))}")
        return
    out, start = out.absolute(), time.perf_counter()
    failed = run_steps(steps, out, options)
    missing = draw(out, options.preset)
    for path in sorted(out.glob("*/README.md")):  # each page's first sentences
        print(re.split(r"!\[|<!--", path.read_text(encoding="utf-8"))[0])
    print(f"{duration(time.perf_counter() - start)}; figures and tables in {out}")
    print(f"all on one page, for a browser: {(out / 'index.html').as_uri()}")
    if failed:
        reasons = "; ".join(f"{name} ({why})" for name, why in failed.items())
        lacking = f"; not drawn: {', '.join(missing)}" if missing else ""
        raise cli.RunError(f"{len(failed)} of {len(steps)} steps failed: {reasons}{lacking}")


RUNS = (("make", main, Options(), "run, draw, and put on one page"),)

if __name__ == "__main__":
    cli.main(__doc__, *RUNS)
