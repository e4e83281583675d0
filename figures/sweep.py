"""The grid of Tables 2 and 3 (Section 5): `hashing.py` for every encoder, number of bits b and of
decoder layers d.

Each cell is a script of its own, with its checkpoint, model and log in --out and its result in
--results, from which Tables 2 and 3 are written. Cells that are trained as far as the options ask
are not run again; others go on from their checkpoints.

    uv run figures/sweep.py --decoder-layers 0 --epochs 300 --fine-epochs 0     d = 0, a fifth of
    the training uv run figures/sweep.py --bits 8 16 --seeds 1 2 3 --jobs 2                  more
    seeds, two cells at a time
"""

import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from data.documents import load_corpus
from figures import section5
from figures.cli import Count, Fraction, Natural, OptionalCount, OptionalPositive, RunError, cli
from figures.run import same_options
from figures.runner import ClusterOptions, Task, run_tasks


@dataclass(frozen=True)
class Options(ClusterOptions):
    encoders: tuple[Literal["e1", "e2", "e3", "e4"], ...] = ("e1", "e2", "e3", "e4")
    """encoders to train"""
    bits: tuple[Count, ...] = (64, 8, 16, 32)
    """numbers of latents b, in this order"""
    decoder_layers: tuple[Natural, ...] = (0, 1, 2)
    """numbers of hidden layers d, in this order"""
    estimators: tuple[Literal["disarm", "arm", "reinforce"], ...] = ("disarm",)
    """gradient estimators"""
    seeds: tuple[Natural, ...] = (1,)
    """seeds"""
    held_out: tuple[Fraction, ...] = (0.0,)
    """fractions held out for selection; 0: train on all documents and select on the test set, as
    the report does"""
    encoder_lr: OptionalPositive = None
    """learning rate of the encoder; None: that of the decoder, 1e-3"""
    epochs: Natural = 1000
    """epochs with one pair of samples per step"""
    fine_epochs: Natural = 500
    """epochs after those, with ten pairs"""
    patience: OptionalCount = None
    """stop a cell when its selecting loss has had no new minimum for so many epochs; None: never"""
    precision: Literal["float32", "bfloat16"] | None = None
    """of training, as in hashing.py"""
    device: str | None = None
    """where to train; None: the accelerator if there is one, else the CPU"""
    corpus: Literal["newsgroups", "docstrings"] = "newsgroups"
    """20 Newsgroups, or the docstrings of the installed libraries"""
    archive: Path | None = None
    """20news-bydate-matlab.tgz; None: $NEWSGROUPS_ARCHIVE, else data/, else it is downloaded
    there"""
    results: Path = Path("figures/results/hashing")
    """folder for one JSON per cell"""
    tables: Path = Path("figures")
    """folder for table2, table3, retrieval and hashing_cells, each as Markdown and LaTeX, and as
    CSV"""
    out: Path = Path("runs/sweep")
    """folder for one folder per cell, with checkpoint, model and log"""

    def __post_init__(self) -> None:
        for name in ("encoders", "bits", "decoder_layers", "estimators", "seeds", "held_out"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"--{name.replace('_', '-')} must name one or more, each once")


def cells(options: Options) -> dict[str, dict[str, Any]]:
    """The options of hashing.py by cell, such as e1_b64_d0, with what differs from the report's
    protocol after it.

    Frequency encoders are tested with counts too, as the released code does.
    """
    grid: dict[str, dict[str, Any]] = {}
    axes = (
        options.decoder_layers,
        options.bits,
        options.held_out,
        options.estimators,
        options.seeds,
        options.encoders,
    )
    for layers, bits, held_out, estimator, seed, encoder in itertools.product(*axes):
        name = (
            f"{encoder}_b{bits}_d{layers}"
            + f"_{estimator}" * (estimator != "disarm")
            + f"_seed{seed}" * (seed != 1)
        )
        name += f"_heldout{held_out:g}" * bool(held_out)
        name += f"_lr{options.encoder_lr:g}" if options.encoder_lr else ""
        grid[name] = {
            "encoder": encoder,
            "bits": bits,
            "decoder_layers": layers,
            "estimator": estimator,
            "seed": seed,
        }
        grid[name] |= {
            key: getattr(options, key)
            for key in ("encoder_lr", "epochs", "fine_epochs", "patience")
        }
        grid[name] |= {
            key: getattr(options, key) for key in ("precision", "device", "corpus", "archive")
        }
        grid[name] |= {"held_out": held_out, "test_counts": encoder in ("e2", "e3")}
    return grid


def command(cell: dict[str, Any]) -> list[str]:
    """The command line of a cell, but for --out and --resume."""
    words = ["hashing.py"]
    for key, value in cell.items():
        if value is not None and value is not False:
            words += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def is_trained(path: Path, cell: dict[str, Any], corpus: str) -> bool:
    """Whether the result at `path` is that of a cell trained as far as `cell` asks.

    Raises RunError if it is no result, or one with other options or documents.
    """
    try:
        result = json.loads(path.read_bytes())
        config, epochs, made_of = result["config"], result["metrics"]["epochs"], result["corpus"]
        losses = result["history"]["held_out" if config["held_out"] else "test"]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError) as error:
        raise RunError(
            f"{path} is no result of a cell: {error!r}; move it away to train the cell again"
        ) from error
    free = {"epochs", "fine_epochs", "patience", "archive", "device"} | (
        {"precision"} if not cell["precision"] else set()
    )
    asked = section5.PROTOCOL | cell
    same_options(path, {key: config.get(key, value) for key, value in asked.items()}, asked, free)
    if made_of != corpus:
        raise RunError(
            f"{path} was trained on {made_of}, not on {corpus}; choose another --results"
        )
    if min(epochs, config["epochs"]) != min(epochs, cell["epochs"]):
        return False
    waited = epochs - 1 - int(np.argmin(losses))
    return epochs >= cell["epochs"] + cell["fine_epochs"] or (
        cell["patience"] is not None and waited >= cell["patience"]
    )


def main(options: Options) -> None:
    corpus = load_corpus(options.corpus, options.archive).name  # once, and an error once
    grid = cells(options)
    waiting = [
        name
        for name, cell in grid.items()
        if not is_trained(options.results / f"{name}.json", cell, corpus)
    ]
    out = options.out.absolute()
    tasks = [
        Task(name, (*command(grid[name]), "--resume", "--out", str(out / name)), folder=out / name)
        for name in waiting
    ]
    with tqdm(total=len(grid), initial=len(grid) - len(tasks), desc="sweep", unit="cell") as bar:

        def ended(name: str, reason: str | None) -> None:
            if reason is None:
                options.results.mkdir(parents=True, exist_ok=True)
                shutil.copy(out / name / "result.json", options.results / f"{name}.json")
            bar.set_postfix_str(name)
            bar.update()

        failed = run_tasks(tasks, options, ended)
    trained = section5.read_cells(options.results)
    section5.write_tables(trained, options.tables)
    section5.write_retrieval(trained, options.tables)
    print((options.tables / "table3.md").read_text(encoding="utf-8"))
    if failed:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in failed.items())
        raise RunError(f"{len(failed)} of {len(grid)} cells failed: {reasons}")


RUNS = (("report", main, Options(), "train the grid"),)

if __name__ == "__main__":
    cli(__doc__, *RUNS)
