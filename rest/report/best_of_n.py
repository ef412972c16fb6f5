"""Best-of-N of several policies side by side (the paper's figure 6): table, plot, and where curves cross, in words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from rest.evaluation.best_of_n import Crossing, Curve, crossing, curves_of, kl_bound
from rest.evaluation.exact import majority_at, pass_at, right
from rest.evaluation.outputs import Outputs
from rest.folder import StageName, asked_for, newest_evaluations
from rest.report.plots import GREY, ORANGE, STYLE, WIDTH, name_at_edge
from rest.report.sections import Lines, Section

TITLES = {"reward": "reward", "gold": "gold", "chrf": "chrF of sentences"}
DIGITS = {"chrf": 1}
REACHED_AT = (1, 10)  # the N of the last step that BC is asked to reach: the paper's figure 6 reads off both


@dataclass(frozen=True)
class PolicyCurves:
    """One policy's samples and what the best of N of them is worth."""

    name: StageName
    outputs: Outputs

    @property
    def samples(self) -> dict[str, np.ndarray]:
        """float32 [sources, M] of each metric."""
        return self.outputs.scores

    @cached_property
    def measured(self) -> tuple[dict[str, Curve], dict[str, Curve]]:
        """Curves and win rates; the seed is the same for every policy, so that they compare pair by pair."""
        return curves_of(self.samples, seed=0)

    @property
    def curves(self) -> dict[str, Curve]:
        return self.measured[0]

    @cached_property
    def exact(self) -> tuple[Curve, Curve] | None:
        """How often one of N is exactly right, and how often the most frequent is; None where nothing ever is."""
        found = right(self.outputs)
        if found is None or not found.any():
            return None
        return Curve.of(pass_at(found), seed=0), Curve.of(majority_at(self.outputs.texts, found), seed=0)


def read_curves(run: Path) -> list[PolicyCurves]:
    """Every policy of the run whose samples were drawn, with the largest M where there are several."""
    found: dict[StageName, tuple[int, Path]] = {}
    asked = asked_for(run)
    for file in newest_evaluations(run).glob("best-of-*/[!.]*/samples.parquet"):
        samples, name = file.parent.parent.name.removeprefix("best-of-"), StageName.parse(file.parent.name)
        if samples.isdigit() and name and asked(name) and (file.parent / "stage.json").is_file():
            found[name] = max(found.get(name, (0, file)), (int(samples), file))
    names = sorted(found, key=lambda name: name.order)
    return [PolicyCurves(name, Outputs.read(found[name][1])) for name in names]


def section(run: Path) -> Section | None:
    """The report's section, None where no policy's samples were drawn."""
    policies = read_curves(run)
    if not policies:
        return None
    caption = (
        "What the sample that the reward likes best of N is worth, by N. Bands are 95% intervals over sources. "
        "Only the first panel is what the choice was made by."
    )
    return Section(
        "Best of N samples", sentences(policies), [lines(policies)], [(figure(policies), "best-of-n", caption)]
    )


def shown_n(most: int) -> list[int]:
    """1, 2, 4, ... and the last."""
    return sorted({*(1 << k for k in range(most.bit_length())), most})


def lines(policies: list[PolicyCurves]) -> Lines:
    """A line for each policy and N."""
    metrics = [metric for metric in TITLES if any(metric in policy.curves for policy in policies)]
    wins = [f"{TITLES[metric]}: wins against N = 1" for metric in metrics if metric != "chrf"]
    exact = ["exactly right: one of N (pass@N)", "the most frequent of N (maj@N)"]
    exact = exact if any(policy.exact for policy in policies) else []
    found = [["policy", "N", *(TITLES[m] for m in metrics), *wins, *exact, "KL to the policy: bound (nats, at most)"]]
    for policy in policies:
        curves, won = policy.measured
        for n in shown_n(len(curves["reward"].mean)):
            cells = [_cell(curves.get(metric), n, DIGITS.get(metric, 3)) for metric in metrics]
            cells += [_share(won.get(metric), n) for metric in metrics if metric != "chrf"]
            cells += [_share(curve, n) for curve in policy.exact or [None] * len(exact)]
            found.append([policy.name.label, str(n), *cells, f"{kl_bound(n):.2f}"])
    return found


def _cell(curve: Curve | None, n: int, digits: int) -> str:
    if curve is None:
        return ""
    lo, hi = curve.ci95[:, n - 1]
    return f"{curve.mean[n - 1]:.{digits}f} [{lo:.{digits}f}–{hi:.{digits}f}]"


def _share(curve: Curve | None, n: int) -> str:
    return f"{curve.mean[n - 1]:.1%}" if curve is not None and n <= len(curve.mean) else ""


def sentences(policies: list[PolicyCurves]) -> list[str]:
    """Where BC reaches what the last Improve step reaches, and whether gold falls while the reward rises with N."""
    found = []
    steps = [p for p in policies if p.name.on_the_way]
    bc = next((p for p in policies if p.name.kind == "bc"), None)
    for other in steps[-1:] if bc else []:
        assert bc is not None
        if len(bc.samples["reward"]) != len(other.samples["reward"]):
            continue  # not the same sources
        for metric in [m for m in TITLES if m in bc.curves and m in other.curves]:
            a, b = bc.curves[metric], other.curves[metric]
            for at in [n for n in REACHED_AT if n <= len(b.mean)]:
                found.append(_crosses(crossing(a, b, at), len(a.mean), TITLES[metric], other.name.label))
    for policy in policies:
        for metric in [m for m in ("gold", "chrf") if m in policy.curves]:
            if sentence := _falls(policy.curves[metric], TITLES[metric], policy.name.label):
                found.append(sentence)
    found.append(
        "Of samples with equal reward any is as likely to be chosen. "
        "The bound on the KL divergence is log N − (N − 1)/N."
    )
    return found


def _crosses(found: Crossing, most: int, metric: str, other: str) -> str:
    reached = f"the {metric} that {other} has at N = {found.at} ({found.target:.3f})"
    if found.n is None:
        possibly = f" (95% interval: from {found.lo})" if found.lo is not None else ""
        return f"BC does not reach {reached} with the best of {most}{possibly}."
    interval = f"{found.lo}–{found.hi}" if found.hi is not None else f"from {found.lo}"
    return f"BC reaches {reached} at N = {found.n} (95% interval: {interval})."


def _falls(curve: Curve, metric: str, name: str) -> str | None:
    """A caution where the metric is lower at the last N than at its best, beyond the paired interval."""
    best = int(curve.mean.argmax())
    lost = curve.resampled[:, best] - curve.resampled[:, -1]
    if best == len(curve.mean) - 1 or np.quantile(lost, 0.025) <= 0:
        return None
    return (
        f"Caution: {name}'s {metric} is highest at N = {best + 1} ({curve.mean[best]:.3f}) and falls to "
        f"{curve.mean[-1]:.3f} at N = {len(curve.mean)}: choosing harder by this reward makes it worse."
    )


def figure(policies: list[PolicyCurves]) -> Figure:
    """A panel a metric, a line a policy, N on a logarithmic axis."""
    metrics = [metric for metric in TITLES if any(metric in policy.curves for policy in policies)]
    colours = _colours(policies)
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        for axes, metric in zip(drawn.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            names, most = [], 1
            for policy in [policy for policy in policies if metric in policy.curves]:
                curve, colour = policy.curves[metric], colours[policy.name]
                n = np.arange(1, len(curve.mean) + 1)
                axes.plot(n, curve.mean, color=colour, linewidth=1.5)
                axes.fill_between(n, *curve.ci95, color=colour, alpha=0.15, linewidth=0)
                names.append((float(curve.mean[-1]), policy.name.label, colour))
                most = max(most, len(n))
            ticks = shown_n(most)[:: 1 + most.bit_length() // 6]
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [str(n) for n in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_title(TITLES[metric])
            name_at_edge(axes, names, fontsize=8.0)
        drawn.supxlabel("N, samples that the reward chooses from", fontsize=9.5)
    return drawn


def _colours(policies: list[PolicyCurves]) -> dict[StageName, str]:
    """BC grey, its continuation orange, the others from light to dark blue."""
    fixed = {"bc": GREY, "bc_continued": ORANGE}
    others = [p.name for p in policies if p.name.kind not in fixed]
    shades = mpl.colormaps["Blues"](np.linspace(0.45, 1.0, max(1, len(others))))
    found = {name: mpl.colors.to_hex(shade) for name, shade in zip(others, shades, strict=False)}
    return found | {p.name: fixed[p.name.kind] for p in policies if p.name.kind in fixed}
