"""Redraw the committed figures and tables from the committed results: `uv run figures/make.py`. Nothing is trained."""

import json
from pathlib import Path

from figures import section3, section5

HERE = Path(__file__).parent
RESULTS = {
    "mixture_released": (section3.draw_figure1, section3.draw_gap, section3.draw_curves),
    "hashing_e1_64_0": (section5.draw_hashing_curves,),
    "exact_d0": (section5.draw_exact,),
    "disarm": (section5.draw_estimator_variance,),
}


def read(name: str) -> dict:
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def main() -> None:
    for name, drawings in RESULTS.items():
        for draw in drawings:
            draw(read(name), HERE)
            print(f"{name}: {draw.__name__.removeprefix('draw_')}")
    cells = section5.read_cells(HERE / "results" / "hashing")
    section5.write_tables(cells, HERE)
    section5.draw_section5(read("exact_d0"), cells, HERE)
    print(f"{len(cells)} cells of hashing.py: table2, table3, hashing_cells, section5")


if __name__ == "__main__":
    main()
