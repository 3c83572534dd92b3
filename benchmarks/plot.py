"""Draws how loading, committing, opening and memory grow with the number of objects."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import Results
from benchmarks.sizes import Sizes
from benchmarks.systems import System

PANELS = (
    ("growth_load_us", "cold load, µs per object", "linear"),
    ("growth_commit_us", "commit of 100 new objects, µs per object", "linear"),
    ("growth_open_ms", "open, ms", "log"),
    ("growth_open_mib", "memory taken by opening, MiB", "log"),
)
LEAST_SHOWN = 0.01
"""Logarithmic axes have no zero: smaller values are drawn here."""


def draw(results: Results, sizes: Sizes, systems: list[System], path: Path) -> None:
    """Save the plot as SVG; the same numbers give the same file."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "objdb"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), sharex=True, layout="constrained")
    for panel, (quantity, title, scale) in zip(axes.flat, PANELS, strict=True):
        for system in systems:
            points = [
                (count, max(value, LEAST_SHOWN))
                for count in sizes.growth
                if (value := results.median(f"growth-{count}", system.name, quantity)) is not None
            ]
            if points:
                width = 2.5 if system.name == "objdb" else 1.2
                panel.plot(*zip(*points, strict=True), marker="o", lw=width, label=system.title)
        panel.set_xscale("log")
        panel.set_yscale(scale)
        if scale == "linear":
            panel.set_ylim(bottom=0)
        else:
            panel.yaxis.set_major_formatter("{x:g}")
        panel.set_title(title)
        panel.grid(alpha=0.3)
    for panel in axes[1]:
        panel.set_xlabel("objects in the file")
    axes[0][0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
