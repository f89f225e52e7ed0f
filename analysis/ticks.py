"""The scales of the axes of a figure, and the numbers at them: few, round, and no two alike."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from mirai_bench.results.frame import is_share

LOG_FROM = 5.0  # ratio of the greatest to the least value from which the scale is logarithmic
FEWEST = 3  # ticks of an axis
LARGE = 1e5  # from here on numbers are written as multiples of a power of ten


def metric_axis(axes: Axes, metric: str, scale: str, values: pd.Series[float]) -> None:
    """Sets the scale of a metric (linear, log or auto) and its numbers."""
    least = values.min()
    if scale == "auto":
        is_wide = least > 0 and values.max() > LOG_FROM * least
        scale = "log" if is_wide and not is_share(metric) else "linear"
    if scale != "log":
        return
    axes.set_yscale("log")
    axes.autoscale_view()
    # A metric may span less than a decade, in which powers of ten alone would leave no tick.
    low, high = axes.get_ylim()
    locators = [LogLocator(subs=subs) for subs in ((1, 2, 5), (1, 2, 3, 5, 7))]
    for locator in (*locators, MaxNLocator(5)):
        axes.yaxis.set_major_locator(locator)
        if sum(low <= tick <= high for tick in axes.yaxis.get_majorticklocs()) >= FEWEST:
            break
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def cost_axis(axes: Axes, x: str, values: pd.Series[float]) -> str:
    """Sets the numbers of the axis of epochs or costs. Returns what is to be said of their unit."""
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=x == "epochs", steps=[1, 2, 5, 10]))
    greatest = values.max()
    if not greatest >= LARGE:  # or there is no value at all
        return ""
    power = math.floor(math.log10(greatest))
    axes.xaxis.set_major_formatter(lambda place, _: f"{place / 10**power:g}")
    return f" ($10^{{{power}}}$)"


if __name__ == "__main__":
    raise SystemExit("no command, but a part of some: docs/commands/analysis.md lists them")
