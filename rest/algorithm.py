"""Algorithm 1 of ReST (Gulcehre et al. 2023, arXiv 2308.08998), stage by stage, each stage a folder."""

from __future__ import annotations

from pathlib import Path

from rest.experiment import Experiment
from rest.folder import StageName
from rest.report.page import write_report
from rest.report.summary import summarise
from rest.runs import Run, controls


def rest(run: Run) -> None:
    """Grow and Improve, and what they are compared with. Stages that are complete are not made again."""
    e = run.experiment
    policy = run.bc()  # π₀
    run.evaluate(StageName("bc"), policy)
    for g in range(1, e.grow_steps + 1):
        reward = run.reward(g)  # R, always the same, or fitted again to ratings of the latest policy too
        dataset = run.grow(g, policy, reward)  # D_g = {(x, y): x ~ D, y ~ π(·|x)} ∪ D, scored by R
        if e.improve.unfiltered:
            branch = run.improve(g, 0, policy, dataset, reward)  # τ = -∞, a side branch
            run.evaluate(StageName("improve", g, 0), branch)
        for i in range(1, e.improve.rule.steps + 1):
            if run.nothing_passes(g, i, dataset):
                break
            policy = run.improve(g, i, policy, dataset, reward)  # 1{R(x, y) > τᵢ}, the best on dev
            run.evaluate(StageName("improve", g, i), policy)
    if run.done.newest > 1:  # policies that were evaluated by an earlier reward
        for name in [StageName("bc"), *run.done.complete("improve")]:
            run.evaluate(name, run.policy(name))
    if e.ppo.rollouts:
        run.evaluate(StageName("ppo"), run.ppo())  # online, for comparison
    if run.done.trained_further:
        controls(run)  # BC trained for as long, sampled at lower temperatures, the best of its samples


def run(experiment: Experiment, out: Path | str) -> Run:
    """The whole loop in a folder, with its table and report; on a half-done folder, what is missing."""
    done = Run(experiment, out)
    with done.recorded():
        rest(done)
    summarise(done.out)
    write_report(done.out)
    return done
