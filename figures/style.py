"""One look for every figure: colour-blind-safe hues (Okabe and Ito, 2008)."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from tabulate import tabulate

from data import write_aside

# In grey some are alike: lines and markers tell them apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
REFERENCE = "0.35"  # grey of lines that mark published values
NUMERIC = re.compile(r"(-|not run)$|[-+]?[\d.]")  # a cell with a number, or what stands for one

plt.rcParams.update(
    {
        "figure.constrained_layout.use": True,
        "figure.dpi": 100,
        "savefig.dpi": 160,
        "savefig.format": "png",
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "0.9",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.linewidth": 1.5,
        "lines.markersize": 4.5,
        "pdf.fonttype": 42,
    }
)


def look(i: int, **changes: object) -> dict[str, Any]:
    """How the i-th of several things looks."""
    return {"color": COLOURS[i], "linestyle": LINES[i], "marker": MARKERS[i]} | changes


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `name`.png into `folder`, and in the format of rcParams["savefig.format"], without a
    date: the same result gives the same bytes.
    """
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
    for kind in dict.fromkeys(("png", plt.rcParams["savefig.format"])):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=undated[kind])
        write_aside(folder / f"{name}.{kind}", buffer.getbuffer())
    plt.close(figure)


def curves(history: Mapping[str, Sequence[float]], ylabel: str, folder: Path) -> None:
    """curves.png: every series of a training against epochs, each in a panel of its own."""
    figure, axes = plt.subplots(1, len(history), figsize=(2.6 * len(history), 2.4), squeeze=False)
    for axis, (name, values) in zip(axes[0], history.items(), strict=True):
        axis.plot(range(1, len(values) + 1), values, color=COLOURS[0])
        axis.set(title=name.replace("_", " "), xlabel="epoch")
    axes[0, 0].set_ylabel(ylabel)
    save(figure, folder, "curves")


def write_table(
    path: Path, caption: str, header: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """Write `path`.md and `path`.tex, the caption first; columns of numbers are aligned right."""
    cells = [[str(value) for value in row] for row in rows]
    columns = zip(*cells, strict=True)
    align = ["right" if all(map(NUMERIC.match, column)) else "left" for column in columns]
    for kind, form, first in ((".md", "pipe", ""), (".tex", "latex_booktabs", "% ")):
        table = tabulate(cells, header, form, colalign=align, disable_numparse=True)
        write_aside(path.with_suffix(kind), f"{first}{caption}\n\n{table}\n".encode())


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write `path`.csv."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    write_aside(path.with_suffix(".csv"), buffer.getvalue().encode())
