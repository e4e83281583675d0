"""`--like RESULT.json`: run again what a result was made with, and compare."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures.cli import Run, RunError

PLACES = ("out", "resume", "device", "checkpoint_every")  # where and how, not what


def options_of(path: Path, runs: Sequence[Run]) -> tuple[Any, dict[str, Any]]:
    """The options that a result was made with, of the run that has most of them, and the result.

    What a result says of options that are no more is printed. Raises RunError if it is no result of
    these runs.
    """
    try:
        result = json.loads(path.read_bytes())
        config = result["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"--like: {path} is no result: {error!r}") from error

    def names(options: Any) -> set[str]:
        return {field.name for field in dataclasses.fields(options)}

    def likeness(options: Any) -> int:
        return len(names(options) & config.keys()) - len(names(options) ^ config.keys())

    options = max((options for _, _, options, _ in runs), key=likeness)
    known = {name: config[name] for name in names(options) & config.keys() - set(PLACES)}
    sources = {name for name in names(options) if isinstance(getattr(options, name), Path)}
    if len(known) < len(config) / 3 or not sources <= config.keys():
        raise RunError(f"--like: {path} is not a result of this script")
    gone = sorted(config.keys() - names(options))
    if gone:
        print(f"{path} has options that are no more: {', '.join(gone)}")
    for name, value in known.items():
        if isinstance(value, list):
            known[name] = tuple(value)
        elif isinstance(getattr(options, name), Path) and value is not None:
            known[name] = Path(value)
    return dataclasses.replace(options, **known), result


def numbers(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested metrics by dotted name."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    found = {}
    for key, part in value.items():
        found |= numbers(part, f"{name}.{key}" if name else str(key))
    return found


def compare(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print whether the metrics of two results are equal, or by how much they are not; and what
    differs in versions and machines.
    """
    environments = before["environment"], after["environment"]
    for key in sorted(environments[0].keys() & environments[1].keys()):
        a, b = (environment[key] for environment in environments)
        if a != b:
            print(f"{key}: {a} before, {b} now")
    old, new = (result["metrics"] for result in (before, after))
    if "knob" in old:  # one of the law's cases, which were split off their run
        same = ("of", "value", "seed")
        new = next((c for c in new["cases"] if all(c[k] == old[k] for k in same)), {})
    old, new, beside = numbers(old), numbers(new), {"name", "settled"}  # of such a case
    shared = sorted((old.keys() & new.keys()) - beside)
    differ = [name for name in shared if old[name] != new[name]]
    if lacking := len((old.keys() ^ new.keys()) - beside):
        print(f"{lacking} metrics are in one of the two only")
    if not differ:
        print(f"all {len(shared)} metrics are equal, bit by bit")
        return

    def apart(name: str) -> float:
        a, b = old[name], new[name]
        if not isinstance(a, int | float) or not isinstance(b, int | float):
            return float("inf")
        return abs(a - b) / max(abs(a), abs(b), 1e-3)  # below that, all is rounding

    worst = max(differ, key=apart)
    values = f"{old[worst]} before, {new[worst]} now"
    print(f"{len(differ)} of {len(shared)} metrics differ, most of all {worst}: {values}")
