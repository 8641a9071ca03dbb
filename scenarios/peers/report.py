"""Medians, ratios and targets of what was measured, and how they are printed."""

from __future__ import annotations

import statistics

import systems

FIGURES = {
    # What is measured, of which measure, how it is called, its unit.
    "one_by_one_per_s": ("calls", "no-op calls one by one", "calls/s"),
    "map_per_s": ("calls", "no-op calls by one map", "calls/s"),
    "p50_ms": ("trips", "one call there and back, p50", "ms"),
    "p99_ms": ("trips", "one call there and back, p99", "ms"),
    "seconds": ("frames", "frame in partitions", "s"),
}

TARGETS = [
    # Of Floe's figure, over which system's which figure (none: itself), at least or at most what.
    ("one_by_one_per_s", ("dask", "one_by_one_per_s"), ">=", 20),
    ("one_by_one_per_s", ("ray", "one_by_one_per_s"), ">=", 6),
    ("one_by_one_per_s", ("pool", "one_by_one_per_s"), ">=", 1),
    ("map_per_s", ("ray", "one_by_one_per_s"), ">=", 30),
    ("p50_ms", None, "<=", 0.7),
    ("p99_ms", None, "<=", 3),
    ("seconds", ("dask", "seconds"), "<", 1),
    ("seconds", ("ray", "seconds"), "<", 1),
    ("seconds", ("ipyparallel", "seconds"), "<", 1),
    ("seconds", ("pool", "seconds"), "<=", 1.15),
]

MEETS = {
    ">=": lambda value, bound: value >= bound,
    "<=": lambda value, bound: value <= bound,
    "<": lambda value, bound: value < bound,
}


def summarize(results, measures):
    """Of each system its version, its figures (median, least and most of the rounds) and its errors; and what
    became of each target among what was to be measured. A target that cannot be judged has no value."""
    summary = {name: _system(rounds, measures) for name, rounds in results["rounds"].items()}
    targets = []
    for figure, other, sign, bound in TARGETS:
        if FIGURES[figure][0] not in measures or not {"floe", other[0] if other else "floe"} <= set(summary):
            continue
        value = _median(summary, "floe", figure)
        if other:
            over = _median(summary, *other)
            value = value / over if value is not None and over else None
        targets.append(
            {
                "figure": figure,
                "over": {"system": other[0], "figure": other[1]} if other else None,
                "value": value,
                "sign": sign,
                "bound": bound,
                "met": None if value is None else MEETS[sign](value, bound),
            }
        )
    return {"systems": summary, "targets": targets}


def _system(rounds, measures):
    figures = {}
    for figure, (measure, _, _) in FIGURES.items():
        values = [turn[measure][figure] for turn in rounds if figure in turn.get(measure, {})]
        if values:
            figures[figure] = {
                "median": statistics.median(values),
                "least": min(values),
                "most": max(values),
                "rounds": len(values),
            }
    errors = []
    for number, turn in enumerate(rounds, 1):
        found = {"": turn.get("error"), **{f"{what}: ": turn.get(what, {}).get("error") for what in measures}}
        errors += [f"round {number}: {what}{error}" for what, error in found.items() if error]
    versions = [turn["version"] for turn in rounds if "version" in turn]
    failed = {
        what for what in measures for turn in rounds if "error" in turn or "error" in turn.get(what, {})
    }
    return {
        "version": versions[0] if versions else None,
        "figures": figures,
        "failed": sorted(failed),
        "errors": errors,
    }


def _median(summary, system, figure):
    return summary.get(system, {}).get("figures", {}).get(figure, {}).get("median")


def text(summary, results):
    """Tables in Markdown: what every system did, and Floe's targets."""
    settings, machine = results["settings"], results["machine"]
    lines = [
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"Python {machine['python']}, load {machine['load']:.1f} at the start. Medians of "
        f"{settings['rounds']} rounds, the least and the most in brackets; {settings['calls']} calls, "
        f"{settings['trips']} calls there and back, {settings['rows']} rows in {settings['partitions']} "
        "partitions.",
        "",
    ]
    shown = summary["systems"]
    heads = [f"{systems.NAMES[name]} {system['version'] or ''}".strip() for name, system in shown.items()]
    rows = []
    for figure, (_, label, unit) in FIGURES.items():
        if any(figure in system["figures"] for system in shown.values()):
            rows.append([f"{label}, {unit}", *(_cell(system, figure) for system in shown.values())])
    lines += _table(["what", *heads], rows)
    alone = results["alone"].get("frames", {}).get("seconds")
    if alone and "seconds" in {figure for system in shown.values() for figure in system["figures"]}:
        lines += ["", f"The frame's function over the whole frame in one process: {_number(alone)} s."]
    if summary["targets"]:
        lines.append("")
        lines += _table(
            ["Floe's", "value", "target", "met"], [_target_row(target) for target in summary["targets"]]
        )
    errors = [
        f"- {systems.NAMES[name]}, {error}" for name, system in shown.items() for error in system["errors"]
    ]
    if errors:
        lines += ["", "What failed:", "", *errors]
    return "\n".join(lines)


def _cell(system, figure):
    values = system["figures"].get(figure)
    if values is None:
        return "failed" if FIGURES[figure][0] in system["failed"] else "–"
    least, most = _number(values["least"]), _number(values["most"])
    return f"{_number(values['median'])} ({least} to {most})"


def _target_row(target):
    _, label, unit = FIGURES[target["figure"]]
    if target["over"]:
        over = systems.NAMES[target["over"]["system"]]
        if target["over"]["figure"] != target["figure"]:
            over += f"'s {FIGURES[target['over']['figure']][1]}"
        label, unit = f"{label} : {over}", "×"
    value = "not measured" if target["value"] is None else f"{target['value']:.2f} {unit}"
    met = {True: "yes", False: "NO", None: "?"}[target["met"]]
    return [label, value, f"{target['sign']} {target['bound']} {unit}", met]


def _number(value):
    """With three digits that count."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(head, rows):
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    aligned = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [head, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in aligned]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
