"""Redraw the committed figures from the committed results: `uv run figures/make.py`. Nothing is trained."""

import json
from pathlib import Path

from figures import section3, section5

HERE = Path(__file__).parent
RESULTS = {
    "mixture_released": (section3.draw_figure1, section3.draw_gap, section3.draw_curves),
    "hashing_e1_64_0": (section5.draw_hashing_curves,),
    "disarm": (section5.draw_estimator_variance,),
}


def main() -> None:
    for name, drawings in RESULTS.items():
        result = json.loads((HERE / "results" / f"{name}.json").read_text())
        for draw in drawings:
            draw(result, HERE)
            print(f"{name}: {draw.__name__.removeprefix('draw_')}")


if __name__ == "__main__":
    main()
