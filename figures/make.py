"""Redraw the committed figures and tables from the committed results: `uv run figures/make.py`. Nothing is trained."""

import json
from pathlib import Path

from figures import section3, section4, section5

HERE = Path(__file__).parent
RESULTS = {
    "mixture_released": (section3.draw_figure1, section3.draw_gap, section3.draw_curves),
    "hashing_e1_64_0": (section5.draw_hashing_curves,),
    "exact_d0": (section5.draw_exact,),
    "disarm": (section5.draw_estimator_variance,),
}


SECTION4 = ("dcgan", *section4.STAGES)


def read(name: str) -> dict:
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def main() -> None:
    for name, drawings in RESULTS.items():
        for draw in drawings:
            draw(read(name), HERE)
            print(f"{name}: {draw.__name__.removeprefix('draw_')}")
    done = {name: read(f"celeba/{name}") for name in SECTION4 if (HERE / "results/celeba" / f"{name}.json").exists()}
    dcgan = done.pop("dcgan")
    section4.draw_dcgan(dcgan, HERE)
    section4.draw_grid(dcgan, HERE)
    section4.draw_section4(done, HERE)
    section4.draw_rows(done, HERE)
    section4.write_table1(dcgan, done, HERE)
    section4.draw_contact_sheet(HERE)
    print(f"{', '.join(done)} of Section 4: dcgan_curves, dcgan_grid, section4, celeba_rows, table1, faces")
    cells = section5.read_cells(HERE / "results" / "hashing")
    section5.write_tables(cells, HERE)
    section5.draw_section5(read("exact_d0"), cells, HERE)
    print(f"{len(cells)} cells of hashing.py: table2, table3, hashing_cells, section5")


if __name__ == "__main__":
    main()
