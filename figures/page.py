"""What a folder of results shows: its figures and tables, the page of each section, the README's
numbers, and index.html, which has all of them with the figures inside.

The same templates render the committed results, a run of the full protocol and a quick run. A
template says what it has to say of the results that are there, in `{% if ran(...) %}`.
"""

import base64
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from tqdm import tqdm

from data import write_aside
from figures import findings, law, section3, section4, section5

SECTIONS = ("law", "section3", "section4", "section5")  # folders, each with its page as README.md
MORE_FILES = {  # tables and figures that a page leaves out, and index.html shows, folded
    "section4": ("table1.md", "dcgan_grid.png"),
    "section5": ("table2.md", "table3.md", "table3.png", "estimator_variance.png"),
}
MORE = "<!-- more -->\n"  # in a page; what is below is folded in index.html
MARKERS = ("<!-- rendered by figures/make.py from here -->\n", "<!-- to here -->\n")


def draw(folder: Path) -> list[str]:
    """Draw every figure and table from folder/results, each into the folder of its section; returns
    those whose results are not there.
    """
    results = findings.read(folder / "results")

    def below(prefix: str) -> dict[str, dict]:
        return {n.removeprefix(prefix): r for n, r in results.items() if n.startswith(prefix)}

    mixture = results.get("mixture_released", results.get("mixture"))
    dcgan = results.get("celeba/dcgan")
    exact = {name: result for name, result in results.items() if name.startswith("exact_")}
    stages = {n: results[f"celeba/{n}"] for n in section4.STAGES if f"celeba/{n}" in results}
    kinds = ((section4.STAGES[name][2], name) for name in stages if not name.startswith("encoder"))
    tracked = {kind: stages[name] for kind, name in kinds}
    inference, cells = below("inference/"), below("hashing/")
    cases = {name: result["metrics"] for name, result in below("law/").items()}
    plan = (
        ("law/one_law", law.draw, (cases,)),
        ("law/law", law.write_cases, (cases,)),
        ("section3/figure1", section3.draw_figure1, (mixture,)),
        ("section4/dcgan_grid", section4.write_grid, (dcgan,)),
        ("section4/section4", section4.draw_section4, (tracked,)),
        ("section4/inference", section4.draw_inference, (inference,)),
        ("section4/evidence", section4.write_inference, (inference,)),
        ("section4/table1", section4.write_table1, (dcgan, stages)),
        ("section5/estimator_variance", section5.draw_estimator_variance, (results.get("disarm"),)),
        ("section5/exact", section5.write_exact, (exact,)),
        ("section5/section5", section5.draw_section5, (exact, section5.shown(cells))),
        ("section5/table3", section5.draw_table3, (section5.of_the_report(cells),)),
        ("section5/table2, table3 and hashing_cells", section5.write_tables, (cells,)),
    )
    missing = []
    for name, drawn, inputs in tqdm(plan, desc="drawing", unit="figure"):
        if all(inputs):
            drawn(*inputs, (folder / name).parent)
        else:
            missing.append(name)
    return missing


def environment(autoescape: bool = False) -> Environment:
    """Of templates in this folder; names that they lack are errors."""
    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True}
    loader = FileSystemLoader(Path(__file__).parent)
    found = Environment(loader=loader, autoescape=autoescape, **options)
    found.filters["f"] = lambda value, digits=1: f"{value:,.{digits}f}"
    return found


def fill(template: str, results: Mapping[str, dict], preset: str) -> str:
    """A template rendered with what findings.py computes: `r` results, `m` their metrics."""
    text = environment().get_template(template).render(findings.values(results), preset=preset)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def write(folder: Path, preset: str) -> Path:
    """Render the pages from folder/results, and folder/index.html; returns the path of that."""
    results = findings.read(folder / "results")
    write_pages(folder, results, preset)
    page = environment(autoescape=True).get_template("index.html.j2")
    text = page.render(
        preset=preset,
        count=len(results),
        minutes=round(sum(result["seconds"] for result in results.values()) / 60),
        machines=sorted({machine(result["environment"]) for result in results.values()}),
        sections=[section(folder, name) for name in SECTIONS],
    )
    write_aside(folder / "index.html", text.encode())
    return (folder / "index.html").absolute()


def write_pages(folder: Path, results: Mapping[str, dict], preset: str) -> None:
    """folder/section3/README.md and so on."""
    for name in SECTIONS:
        text = fill(f"{name}/README.md.j2", results, preset)
        write_aside(folder / name / "README.md", text.encode())


def write_readme(results: Mapping[str, dict], readme: Path) -> None:
    """Render the README's numbers between its markers."""
    before, rest = readme.read_text(encoding="utf-8").split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    parts = (before, MARKERS[0], "\n", fill("law/summary.md.j2", results, "report"), "\n")
    write_aside(readme, "".join([*parts, MARKERS[1], after]).encode())


def section(folder: Path, name: str) -> dict[str, Any]:
    """A section of index.html: its page, of which the first part is shown and the rest folded, and
    the tables and figures that the page leaves out.
    """
    text = (folder / name / "README.md").read_text(encoding="utf-8")
    first, _, rest = text.partition(MORE)
    title, _, shown = first.partition("\n")
    folded = [("Findings", rendered(folder, name, rest))] if rest.strip() else []
    for path in (folder / name / file for file in MORE_FILES.get(name, ())):
        if path.exists() and f"]({path.name})\n" not in text:
            table = path.suffix == ".md"
            body = path.read_text(encoding="utf-8") if table else f"![{path.stem}]({path.name})"
            folded.append((path.stem, rendered(folder, name, body)))
    shown = rendered(folder, name, shown)
    return {"name": name, "title": title.removeprefix("# "), "shown": shown, "folded": folded}


def rendered(folder: Path, name: str, text: str) -> str:
    """Markdown of a section's folder as HTML, figures inside, links to files; HTML is escaped."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)

    def inlined(match: re.Match) -> str:
        path = (folder / name / match[1]).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            return html.escape(match[2])
        image = base64.b64encode(path.read_bytes()).decode()
        target = path.relative_to(folder.resolve()).as_posix()
        return f'<a href="{target}"><img src="data:image/png;base64,{image}" alt="{match[2]}"></a>'

    body = re.sub(r'href="(?!\w+:|#)', f'href="{name}/', body)
    return re.sub(r'<img src="([^"]*)" alt="([^"]*)" ?/?>', inlined, body)


def machine(environment: Mapping[str, Any]) -> str:
    keys = ("processor", "device", "threads", "torch")
    processor, device, threads, torch = (environment[key] for key in keys)
    return f"{processor} ({device}, {threads} threads, torch {torch})"
