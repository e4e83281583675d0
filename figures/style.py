"""One look for every figure: colour-blind-safe hues (Okabe and Ito, 2008)."""

import base64
import contextlib
import csv
import io
import re
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data import write_aside

# In grey some are alike: lines and markers tell them apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
REFERENCE = "0.35"  # grey of lines that mark published values
HEADING: list[str] = []  # lines over every figure and table; see `headed`
KINDS = ["png"]  # of files of figures

plt.rcParams.update(
    {
        "figure.constrained_layout.use": True,
        "figure.dpi": 100,
        "savefig.dpi": 160,
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


@contextlib.contextmanager
def headed(line: str, pdf: bool = False) -> Generator[None]:
    """Everything written inside has this line on top; an empty line changes nothing. pdf: figures
    are written as PDF, too.
    """
    HEADING.extend([line] if line else [])
    KINDS.extend(["pdf"] if pdf else [])
    try:
        yield
    finally:
        HEADING.clear()
        KINDS[1:] = []


def look(i: int, **changes: object) -> dict[str, Any]:
    """How the i-th of several things looks."""
    return {"color": COLOURS[i], "linestyle": LINES[i], "marker": MARKERS[i]} | changes


def picture(axis: Axes, png: str) -> None:
    """An image of a result, PNG in base64, without ticks and frame."""
    image = plt.imread(io.BytesIO(base64.b64decode(png)), format="png")
    axis.imshow(image, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `name`.png into `folder`, without a date: the same result gives the same bytes."""
    if HEADING:
        figure.suptitle("\n".join(filter(None, [*HEADING, figure.get_suptitle()])), fontsize=9)
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
    for kind in KINDS:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=undated[kind])
        write_aside(folder / f"{name}.{kind}", buffer.getbuffer())
    plt.close(figure)


def write_table(
    path: Path, caption: str, header: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """Write `path`.md and `path`.tex: the caption, one line of column names, and the rows."""
    caption = " ".join([*(f"{line}." for line in HEADING), caption])
    cells = [[str(value) for value in row] for row in rows]
    columns = list(zip(*cells, strict=True)) or [()] * len(header)
    right = "".join("--:|" if all(map(numeric, column)) else "---|" for column in columns)
    lines = [caption, "", f"| {' | '.join(header)} |", f"|{right}"]
    lines += [f"| {' | '.join(row)} |" for row in cells]
    write_aside(path.with_suffix(".md"), ("\n".join(lines) + "\n").encode())

    def latex(text: str) -> str:
        return re.sub(r"([&%_#$])", r"\\\1", text)

    body = [" & ".join(map(latex, row)) + r" \\" for row in [header, *cells]]
    tex = [
        *(
            r"\begin{table}",
            rf"\caption{{{latex(caption)}}}",
            rf"\begin{{tabular}}{{{'r' * len(header)}}}",
            r"\hline",
        ),
        *(body[0], r"\hline", *body[1:], r"\hline", r"\end{tabular}", r"\end{table}"),
    ]
    write_aside(path.with_suffix(".tex"), ("\n".join(tex) + "\n").encode())


def numeric(text: str) -> bool:
    """Whether a cell holds a number, or stands for one."""
    return text in ("-", "not run") or bool(re.match(r"[-+]?[\d.]", text))


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write `path`.csv."""
    buffer = io.StringIO()
    buffer.writelines(f"# {line}\n" for line in HEADING)
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    write_aside(path.with_suffix(".csv"), buffer.getvalue().encode())
