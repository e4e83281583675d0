"""The pages of results: one of each section, rendered from its template, the README's numbers, and
index.html, which has all of them with their figures inside.

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

from data import write_aside
from figures import findings

SECTIONS = ("law", "section3", "section4", "section5")  # folders, each with its page as README.md
MORE = "<!-- more -->\n"  # in a page; what is below is folded in index.html
MARKERS = ("<!-- rendered by figures/make.py from here -->\n", "<!-- to here -->\n")
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; background: white; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.85rem; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #8886; vertical-align: top;
  overflow-wrap: normal; }
pre { overflow-x: auto; }
summary { cursor: pointer; margin: 1rem 0; }
"""


def environment(results: Mapping[str, dict], preset: str) -> Environment:
    """Where templates are read, and what they see: `r`, results by name, `m`, their metrics, and
    what figures/findings.py computes of several.
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["f"] = findings.fixed
    templates.globals |= findings.values(results) | {"preset": preset}
    return templates


def write(folder: Path, preset: str) -> Path:
    """Render the pages from folder/results, and folder/index.html; returns the path of that."""
    results = findings.read(folder / "results")
    write_pages(folder, results, preset)
    seconds = sum(result.get("seconds", 0) for result in results.values())
    machines = sorted({machine(result["environment"]) for result in results.values()})
    nav = " · ".join(f'<a href="#{name}">{title(folder / name)}</a>' for name in SECTIONS)
    body = [
        "<h1>VAE approximation error, measured</h1>",
        f"<p>Run of <code>figures/make.py --preset {preset}</code>"
        + (", small versions of all experiments. " if preset == "quick" else ". ")
        + f"{len(results)} results, {seconds / 60:.0f} minutes in scripts, on "
        + f"{html.escape('; '.join(machines) or 'no machine')}.</p>",
        f"<nav>{nav}</nav>",
        *(section(folder, name) for name in SECTIONS),
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>VAE approximation error</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
    write_aside(folder / "index.html", page.encode())
    return (folder / "index.html").absolute()


def write_pages(folder: Path, results: Mapping[str, dict], preset: str) -> None:
    """folder/section3/README.md and so on."""
    templates = environment(results, preset)
    for name in SECTIONS:
        text = templates.get_template(f"{name}/README.md.j2").render()
        text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
        write_aside(folder / name / "README.md", text.encode())


def write_readme(results: Mapping[str, dict], readme: Path) -> None:
    """Render the README's numbers between its markers."""
    before, rest = readme.read_text(encoding="utf-8").split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    text = environment(results, "report").get_template("README.md.j2").render().strip()
    parts = (before, MARKERS[0], "\n", text, "\n\n", MARKERS[1], after)
    write_aside(readme, "".join(parts).encode())


def title(folder: Path) -> str:
    first = (folder / "README.md").read_text(encoding="utf-8").partition("\n")[0]
    return html.escape(first.removeprefix("# "))


def section(folder: Path, name: str) -> str:
    """A section of index.html: its page, the first part shown and the rest folded, then the tables
    and figures that the page leaves out.
    """
    text = (folder / name / "README.md").read_text(encoding="utf-8")
    first, _, rest = text.partition(MORE)
    shown = first.partition("\n")[2]
    parts = [f'<section id="{name}">', f"<h2>{title(folder / name)}</h2>"]
    parts.append(rendered(folder, name, shown))
    if rest.strip():
        parts.append(
            f"<details><summary>Findings</summary>{rendered(folder, name, rest)}</details>"
        )
    for path in sorted((folder / name).iterdir()):
        if path.name in text or path.suffix not in (".md", ".png") or path.name == "README.md":
            continue
        body = f"![{path.stem}]({path.name})"
        if path.suffix == ".md":
            body = path.read_text(encoding="utf-8")
        inside = rendered(folder, name, body)
        parts.append(f"<details><summary>{path.stem}</summary>{inside}</details>")
    return "\n".join([*parts, "</section>"])


def rendered(folder: Path, name: str, text: str) -> str:
    """Markdown as HTML, with figures inside, each a link to its file; other HTML is escaped."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)

    def inlined(match: re.Match) -> str:
        path = (folder / name / match[1]).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            return html.escape(match[2])
        image = base64.b64encode(path.read_bytes()).decode()
        target = path.relative_to(folder.resolve()).as_posix()
        return f'<a href="{target}"><img src="data:image/png;base64,{image}" alt="{match[2]}"></a>'

    return re.sub(r'<img src="([^"]*)" alt="([^"]*)" ?/?>', inlined, body)


def machine(environment: Mapping[str, Any]) -> str:
    keys = ("processor", "device", "threads", "torch")
    processor, device, threads, torch = (environment[key] for key in keys)
    return f"{processor} ({device}, {threads} threads, torch {torch})"
