"""One HTML page of a run: its figures and tables beside the published numbers, with everything that
it shows inside."""

import base64
import json
import re
from pathlib import Path

from markdown_it import MarkdownIt

from data import write_aside

SECTIONS = {  # the page's headings, and what stands below: figures and tables by name, and what they show
    "The claim: joint training raises the bound and pulls the decoder from the data": {
        "claims": ""
    },
    "One law: what joint training costs is the area under its gap": {
        "one_law": "(a) The gap from likelihood (w = 0) to joint training (w = 1), and the cost, shaded. (b) Cost "
        "against area, hollow where they differ. (c) The part of the narrowing that is paid.",
        "law": "",
    },
    "Section 3: four Gaussians, an encoder of two independent bits": {
        "figure1": "Points and regions by the most likely code: (a) true posterior, (b) encoder alone, (c) joint "
        "training, (d) the consistent VAE. The report's ELBO: -3.37 for (b), -3.31 for (c).",
        "mixture_curves": "ELBO, evidence and divergences along training.",
        "mixture_gap": "The gap between evidence and ELBO against the variance of the components.",
    },
    "Section 4: a generator taken as ground truth": {
        "table1": "",
        "section4": "ELBO and Fréchet distances along joint training.",
        "inference": r"(a) log p(x) of held-out images, and the ELBO, in joint training with an encoder, and with the "
        r"best Gaussians in its place. (b) What is lost against the gap at the start. (c) x\*, x, and re-decodings.",
        "evidence": "",
        "celeba_rows": r"Rows of generated images: x\* = g\*(z), with noise, and re-decoded.",
        "dcgan_grid": "",
        "dcgan_curves": "Losses of the GAN, and the distance that selects the epoch.",
    },
    "Section 5: semantic hashing": {
        "table3": "",
        "table2": "",
        "section5": "Likelihood and ELBO through the stages of training, all codes summed over; test losses.",
        "hashing_curves": "Losses per epoch of one configuration.",
        "estimator_variance": "Variance of the gradient estimators.",
        "retrieval": "",
        "exact": "",
    },
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.85rem; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
"""


def write(folder: Path, preset: str) -> Path:
    """Write folder/index.html from the figures and tables in it; returns its path."""
    results = [
        json.loads(path.read_bytes()) for path in sorted((folder / "results").rglob("*.json"))
    ]
    machines = sorted(
        {_machine(result["environment"]) for result in results if "environment" in result}
    )
    seconds = sum(result.get("seconds", 0) for result in results)
    lines = [
        "# VAE approximation error",
        f"Run of `figures/make.py --preset {preset}`"
        + (
            ": small versions of every experiment, **not the report's protocol**."
            if preset == "quick"
            else "."
        ),
        f"{len(results)} results, {seconds / 60:.0f} minutes of computing, on "
        f"{'; '.join(machines) or 'no machine'}.",
    ]
    for heading, parts in SECTIONS.items():
        lines.append(f"## {heading}")
        for name, shows in parts.items():
            if (table := folder / f"{name}.md").exists():
                lines.append(table.read_text(encoding="utf-8"))
            elif (folder / f"{name}.png").exists():
                lines += [f"![{name}]({name}.png)", f"*{shows}*" if shows else ""]
            else:
                lines.append(f"*{name}: not run*")
    body = MarkdownIt("commonmark").enable("table").render("\n\n".join(lines))

    def inlined(match: re.Match) -> str:
        return f'src="data:image/png;base64,{base64.b64encode((folder / match[1]).read_bytes()).decode()}"'

    body = re.sub(r'src="([^":]+\.png)"', inlined, body)
    page = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>VAE approximation error</title>\n<style>{STYLE}</style>\n{body}</html>\n"
    )
    write_aside(folder / "index.html", page.encode())
    return (folder / "index.html").absolute()


def _machine(environment: dict) -> str:
    keys = ("processor", "device", "threads", "torch")
    processor, device, threads, torch = (environment[key] for key in keys)
    return f"{processor} ({device}, {threads} threads, torch {torch})"
