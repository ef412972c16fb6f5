"""What the sentences say, on made-up rows and paired comparisons: shipped output first, and never more than is so."""

from __future__ import annotations

from typing import Any

import pytest

from rest.report.verdict import advice, differences, verdict

Ends = tuple[float, float, float]  # difference, low, high
UP, SAME, DOWN = (1.0, 0.5, 1.5), (0.1, -0.4, 0.6), (-1.0, -1.5, -0.5)


def row(policy: str, reward: float, grow: int = 0, improve: int = 0, **metrics: Any) -> dict[str, Any]:
    found = {"reward_mean": reward, "reward_ci95": [reward - 0.01, reward + 0.01], **metrics}
    return {
        "policy": policy, "grow": grow, "improve": improve, "decode": "sample", "n": 4, "split": "test",
        "metrics": found, "samples_drawn": 0, "gradient_steps": 0, "wall_s": 1.0,
    }  # fmt: skip


def text(bleu: float, beam: float | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"bleu": bleu, "bleu_ci95": [bleu - 1, bleu + 1]}
    return found if beam is None else {**found, "bleu_beam": beam, "bleu_beam_ci95": [beam - 1, beam + 1]}


def run(last: float = 0.80, bleu: float = 30.5, beam: float = 31.5) -> list[dict[str, Any]]:
    return [
        row("bc", 0.70, **text(30, 31)),
        row("bc_continued", 0.71, **text(30, 31)),
        row("rest", 0.75, 1, 1, **text(30, 31)),
        row("rest", last, 1, 2, **text(bleu, beam)),
    ]


def against(old: str, new: str = "improve-1-2", **tests: Ends) -> dict[str, Any]:
    names = ("difference", "lo", "hi")
    return {"new": new, "old": old, "tests": {key: dict(zip(names, ends, strict=True)) for key, ends in tests.items()}}


def both(bleu: Ends, bleu_beam: Ends, reward: Ends = (0.05, 0.04, 0.06)) -> list[dict[str, Any]]:
    """The same differences to BC and to BC continued."""
    tests = {"bleu": bleu, "bleu_beam": bleu_beam, "reward": reward}
    return [against(old, **tests) for old in ("bc", "bc_continued-40")]


@pytest.mark.parametrize(
    ("compared", "said"),
    [
        (both(UP, SAME), "ReST (G1 I2) translates better than BC continued and BC: it gained BLEU of greedy outputs."),
        (
            both(UP, UP),
            "ReST (G1 I2) translates better than BC continued and BC: it gained BLEU of greedy outputs and "
            "BLEU of beam outputs.",
        ),
        (
            both(UP, DOWN),
            "Mixed: against BC continued and BC, ReST (G1 I2) gained BLEU of greedy outputs, and lost BLEU of "
            "beam outputs.",
        ),
        (
            both(SAME, SAME),
            "Sharper, not better: only the samples of ReST (G1 I2) gained; its greedy and beam outputs show no gain on "
            "BC continued and BC beyond chance.",
        ),
        (
            both(SAME, DOWN),
            "Sharper, not better: only the samples of ReST (G1 I2) gained; it lost BLEU of beam outputs.",
        ),
        (
            both(SAME, SAME, (0.0, -0.01, 0.01)),
            "No gain: the greedy and beam outputs of ReST (G1 I2) show none on BC continued and BC beyond chance.",
        ),
        (
            both(DOWN, SAME, (0.0, -0.01, 0.01)),
            "Worse: against BC continued and BC, ReST (G1 I2) lost BLEU of greedy outputs.",
        ),
        (
            [both(UP, UP)[0], both(SAME, SAME, (0.0, -0.01, 0.01))[1]],  # BC continued gained as much
            "No gain: the greedy and beam outputs of ReST (G1 I2) show none on BC continued and BC beyond chance.",
        ),
    ],
)
def test_the_conclusion_is_about_what_a_user_ships(compared: list[dict[str, Any]], said: str) -> None:
    assert verdict(run(), compared=compared)[0] == said


def test_a_reward_that_rose_in_outputs_too_is_not_called_sharper() -> None:
    rows = run()
    for each, reward in zip(rows, (0.7, 0.7, 0.7, 0.8), strict=True):
        each["metrics"] |= {"reward_greedy_mean": reward, "reward_greedy_ci95": [reward - 0.01, reward + 0.01]}
    compared = [
        against(old, bleu=SAME, bleu_beam=SAME, reward=UP, reward_greedy=UP) for old in ("bc", "bc_continued-40")
    ]
    assert verdict(rows, compared=compared)[0] == (
        "No gain but in the reward: that of greedy outputs of ReST (G1 I2) rose, and no other metric of them gained on "
        "BC continued and BC beyond chance."
    )
    compared = [
        against(old, bleu=DOWN, bleu_beam=SAME, reward=UP, reward_greedy=UP) for old in ("bc", "bc_continued-40")
    ]
    assert verdict(rows, compared=compared)[0] == (
        "Worse: against BC continued and BC, ReST (G1 I2) lost BLEU of greedy outputs, though the reward of greedy "
        "outputs rose."
    )


def test_samples_that_differ_as_much_as_before_are_not_called_sharper() -> None:
    rows = run()
    rows[0]["metrics"]["distinct_per_source"], rows[-1]["metrics"]["distinct_per_source"] = 3.5, 3.8
    assert verdict(rows, compared=both(SAME, SAME))[0].startswith("Not better: only the samples of ReST (G1 I2) gained")


def test_greedy_and_beam_come_before_samples_with_paired_differences() -> None:
    compared = [
        against("bc", bleu=UP, bleu_beam=SAME, reward=UP),
        against("bc_continued-40", bleu=SAME, bleu_beam=DOWN),
    ]
    _, greedy, beam, samples, *_ = verdict(run(), compared=compared)
    assert greedy == (
        "Greedy on test: BLEU 30.5 is not told apart from BC continued (+0.1 [-0.4 to +0.6]) "
        "and above BC (+1.0 [+0.5 to +1.5])."
    )
    assert beam == (
        "Beam on test: BLEU 31.5 is below BC continued (-1.0 [-1.5 to -0.5]) and not told apart from BC "
        "(+0.1 [-0.4 to +0.6])."
    )
    assert samples == (  # without a paired test by the two intervals
        "Samples on test: reward 0.800 is above BC continued (0.710 [0.700–0.720]) and above BC "
        "(+1.000 [+0.500 to +1.500])."
    )


def test_what_is_the_same_is_equal() -> None:
    said = verdict(run(), compared=both((0.0, 0.0, 0.0), SAME))
    assert "BLEU 30.5 is equal to BC continued and equal to BC." in said[1]


@pytest.mark.parametrize(
    ("continued", "better"), [(SAME, ""), (DOWN, "; BC continued is better in BLEU of greedy outputs")]
)
def test_where_dev_kept_bc_nothing_changed(continued: Ends, better: str) -> None:
    same = (0.0, 0.0, 0.0)
    compared = [
        against("bc", bleu=same, bleu_beam=same, reward=same),
        against("bc_continued-40", bleu=continued, bleu_beam=SAME, reward=SAME),
    ]
    assert verdict(run(), compared=compared)[0] == (
        f"No change: the outputs of ReST (G1 I2) are those of BC, from which no Improve step gained on dev{better}."
    )
    said = advice(run(), compared=compared)
    assert said == "May it be shipped? There is nothing new: the outputs of ReST (G1 I2) are those of BC."


def test_the_better_of_the_two_controls_counts() -> None:
    rows = [*run(), row("bc_continued_last", 0.69, **text(32, 33))]
    compared = [*both(UP, UP), against("bc_continued-40-last", bleu=DOWN, bleu_beam=DOWN, reward=UP)]
    said = verdict(rows, compared=compared)
    assert said[0].startswith("Sharper, not better: only the samples of ReST (G1 I2) gained")
    assert said[0].endswith("lost BLEU of greedy outputs and BLEU of beam outputs.")
    assert "below BC continued, last (-1.0" in said[1] and "BC continued (" not in said[1]
    rows[-1]["metrics"] |= text(29, 29)
    assert verdict(rows, compared=compared)[0].startswith("ReST (G1 I2) translates better than BC continued and BC")


def test_without_paired_tests_two_intervals_decide() -> None:
    said = verdict(run(bleu=40, beam=31))
    assert said[0] == "ReST (G1 I2) translates better than BC continued and BC: it gained BLEU of greedy outputs."
    assert said[1].endswith("BLEU 40.0 is above BC continued (30.0 [29.0–31.0]) and above BC (30.0 [29.0–31.0]).")
    assert verdict(run(bleu=40), "test", both(SAME, SAME))[0].startswith("Sharper")  # paired ones are better evidence


def test_without_intervals_nothing_is_claimed() -> None:
    rows = run()
    for each in rows:
        each["metrics"] = {key: value for key, value in each["metrics"].items() if "ci95" not in key}
    said = verdict(rows)
    assert (
        said[0]
        == "Whether users of ReST (G1 I2) gain is not known: the metrics of greedy and beam outputs have no intervals."
    )
    assert "BLEU 30.5 is higher, without an interval to go by, than BC continued (30.0)" in said[1]


def test_without_metrics_of_outputs_nothing_is_claimed() -> None:
    rows = [row("bc", 0.7), row("bc_continued", 0.7), row("rest", 0.8, 1, 1)]
    said = verdict(rows)
    assert (
        said[0] == "No metric but those of samples was evaluated, so whether users of ReST (G1 I1) gain is not known."
    )
    assert said[-1] == "Caution: no metric but the reward itself was evaluated."
    for each in rows:
        each["metrics"] = {}
    assert "share no metric" in verdict(rows)[0]


def test_a_sharper_policy_is_held_against_bc_at_the_temperature_of_its_variety() -> None:
    def cooler(temperature: float, reward: float, distinct: float) -> dict[str, Any]:
        return row("bc", reward, distinct_per_source=distinct) | {"temperature": temperature}

    rows = [*run(), cooler(0.64, 0.74, 3.0), cooler(0.5, 0.81, 2.1)]
    rows[0]["metrics"]["distinct_per_source"] = 3.6
    rows[3]["metrics"]["distinct_per_source"] = 2.2
    [said] = [line for line in verdict(rows, compared=both(SAME, SAME)) if "variety" in line]
    assert said == (
        "At about equal variety (2.1 distinct samples a source of BC, T = 0.5, 2.2 of G1 I2) the reward "
        "0.800 [0.790–0.810] is not told apart from BC, T = 0.5 (0.810 [0.800–0.820])."
    )
    rows[3]["metrics"]["distinct_per_source"] = 1.1
    [said] = [line for line in verdict(rows, compared=both(SAME, SAME)) if "varied" in line]
    assert said.startswith("No temperature of BC leaves its samples about as varied (2.1 distinct samples a source of")
    rows[3]["metrics"]["distinct_per_source"] = 3.5  # as varied as BC itself
    assert not [line for line in verdict(rows) if "variety" in line]


def test_a_reward_that_rises_while_quality_falls_is_a_caution() -> None:
    said = verdict(run(), compared=[against("bc", bleu=DOWN, bleu_beam=SAME, reward=UP), *both(SAME, SAME)[1:]])
    assert [line for line in said if line.startswith("Caution")] == [
        "Caution: against BC the reward rose while BLEU, greedy got worse, a sign that the policy exploits the reward."
    ]


@pytest.mark.parametrize(
    ("base", "last", "said"),
    [
        (0.95, 1.22, "are 1.22 times as long as the references, those of BC continued 0.95 times; chrF likes"),
        (1.02, 0.80, "are 0.80 times as long as the references, those of BC continued 1.02 times; BLEU and chrF miss"),
        (0.80, 0.98, ""),
        (1.30, 1.32, ""),
        (0.98, 1.05, ""),
    ],
)
def test_outputs_that_became_too_long_or_too_short_are_a_caution(base: float, last: float, said: str) -> None:
    rows = run()
    for each in rows:
        each["metrics"]["length_ratio"] = last if each["policy"] == "rest" else base
    found = [line for line in verdict(rows) if "times as long" in line]
    assert len(found) == bool(said) and all(said in line for line in found)


def test_a_policy_that_hardly_translates_is_a_caution() -> None:
    rows = run()
    assert not any("hardly" in line for line in verdict(rows))
    rows[0]["metrics"]["bleu"] = 0.3
    found = [line for line in verdict(rows) if "hardly" in line]
    assert len(found) == 1 and found[0].startswith("Caution: BC has BLEU 0.3, so that it hardly translates: more pairs")


def test_missing_controls_are_named() -> None:
    rows = [each for each in run() if each["policy"] != "bc_continued"]
    assert any("BC continued was not evaluated" in line for line in verdict(rows))
    rows = [each for each in run() if each["policy"] != "bc"]
    assert any("BC, the starting policy, was not evaluated" in line for line in verdict(rows))
    assert "Neither BC nor BC continued" in verdict([row("rest", 0.7, 1, 1)])[0]


def test_the_last_step_is_meant_and_whether_it_is_the_best_is_said() -> None:
    assert verdict(run(last=0.72))[-1] == "The highest reward is G1 I1's (0.750 [0.740–0.760]), not the last step's."
    assert "highest" not in verdict(run(last=0.75))[-1]  # a step that kept its start
    rows = [
        *run(),
        row("rest", 0.9, 2, 0),
        row("rest", 0.85, 2, 1, **text(30)),
        row("rest", 0.99, 2, 1) | {"decode": "mbr"},
    ]
    assert verdict(rows)[1].startswith("Greedy on test: BLEU 30.0") and "G2 I1" in verdict(rows)[0]
    assert "No ReST policy" in verdict([row("bc", 0.7)])[0]
    assert "No ReST policy" in verdict([row("bc", 0.7), row("rest", 0.9, 1, 0)])[0]  # only the side branch


def test_a_few_sources_tell_nothing_from_chance() -> None:
    few = [each | {"sources": 1} for each in run(bleu=40, beam=40)]
    said = verdict(few, compared=both(UP, UP))
    assert said[0].startswith("Whether users of ReST (G1 I2) gain is not known")
    assert any(line == "Caution: 1 test sources are too few to tell any difference from chance." for line in said)
    assert advice(few, compared=both(UP, UP)) == "May it be shipped? These numbers cannot tell."
    assert not any("above" in line or "below" in line for line in said)
    equal = [each | {"metrics": each["metrics"] | {"reward_mean": 0.7}} for each in few]
    assert not any("highest reward" in line for line in verdict(equal))


def test_what_was_not_learned_is_explained() -> None:
    only = [row("bc", 0.5, **text(30, 31))]
    rewards = {"all": {"rows": 4, "min": 0.5, "max": 0.5}}
    said = verdict(only, grown={1: {"reward": rewards}})
    assert said[0].startswith("No ReST policy was evaluated") and "the rewards are all 0.500" in said[1]
    rewards["all"] |= {"max": 0.75}
    assert "from 0.500 to 0.750" in verdict(only, grown={1: {"reward": rewards}})[1]
    assert verdict(only)[1:] == []


@pytest.mark.parametrize(
    ("compared", "said"),
    [
        (both(UP, SAME), "Yes: no metric of greedy or beam outputs got worse."),
        (both(UP, DOWN), "Only where BLEU of greedy outputs matters more than BLEU of beam outputs."),
        (both(SAME, DOWN), "No: against BC continued and BC, ReST (G1 I2) loses BLEU of beam outputs."),
        (both(SAME, SAME), "There is no reason to: no metric of what users see beats BC continued and BC beyond"),
    ],
)
def test_whether_it_may_be_shipped(compared: list[dict[str, Any]], said: str) -> None:
    assert advice(run(), compared=compared).startswith(f"May it be shipped? {said}")
    assert [each.metric for each in differences(run(), compared=compared)] == ["bleu"] * 2 + ["bleu_beam"] * 2


def test_without_bc_continued_it_may_only_take_the_place_of_bc() -> None:
    rows = [each for each in run() if each["policy"] != "bc_continued"]
    said = advice(rows, compared=both(UP, UP)[:1])
    assert said == "May it be shipped? In place of BC, yes; whether BC trained for longer is as good, is not known."


def test_of_ter_less_is_better() -> None:
    rows = run()
    for each, ter in zip(rows, (60.0, 60.0, 60.0, 63.0), strict=True):
        each["metrics"] |= {"ter": ter, "ter_ci95": [ter - 1, ter + 1]}
    compared = [against(old, bleu=SAME, ter=UP, bleu_beam=UP, reward=UP) for old in ("bc", "bc_continued-40")]
    said = verdict(rows, compared=compared)
    assert said[0].endswith("gained BLEU of beam outputs, and lost TER of greedy outputs.")
    assert "TER (less is better) 63.0 is above BC continued (+1.0 [+0.5 to +1.5])" in said[1]
    assert any(each.startswith("Caution: against BC the reward rose while TER, greedy got worse") for each in said)
    assert advice(rows, compared=compared) == (
        "May it be shipped? Only where BLEU of beam outputs matters more than TER of greedy outputs."
    )
    compared = [against(old, bleu=SAME, ter=DOWN, bleu_beam=SAME, reward=UP) for old in ("bc", "bc_continued-40")]
    assert "it gained TER of greedy outputs" in verdict(rows, compared=compared)[0]


def test_a_judge_counts_among_what_nothing_was_trained_on() -> None:
    rows = run()
    for each, judge in zip(rows, (0.5, 0.5, 0.5, 0.6), strict=True):
        each["metrics"] |= {"judge_greedy_mean": judge, "judge_greedy_ci95": [judge - 0.01, judge + 0.01]}
    ends = (0.1, 0.05, 0.15)
    compared = [against(old, bleu=SAME, bleu_beam=SAME, judge_greedy=ends) for old in ("bc", "bc_continued-40")]
    said = verdict(rows, compared=compared)
    assert said[0].endswith("it gained judge of greedy outputs.")
    assert "judge 0.600 is above BC continued (+0.100 [+0.050 to +0.150])" in said[1]
    assert advice(rows, compared=compared) == "May it be shipped? Yes: no metric of greedy or beam outputs got worse."


def test_a_gain_in_what_the_reward_compares_texts_by_is_a_caution() -> None:
    bleu = {"type": "rest.reward.reference_based.SentenceBLEU", "tokenize": "13a"}
    of_samples = {"type": "rest.reward.utility.Mixture", "utilities": [{"type": "rest.reward.utility.ChrF"}, bleu]}
    consensus = {"function": {"type": "rest.reward.consensus.Consensus", "utility": of_samples}, "scale": [0.0, 1.0]}
    caution = "Caution: the reward compares texts by BLEU, so a gain there weighs less than one in other metrics."
    assert verdict(run(), "test", both(UP, SAME), reward={"function": bleu})[-1] == caution
    assert verdict(run(), "test", both(UP, SAME), reward=consensus)[-1] == caution  # chrF was not measured
    for compared, reward in ((both(SAME, DOWN), consensus), (both(UP, UP), {"function": {"type": "mine.Reward"}})):
        assert caution not in verdict(run(), "test", compared, reward=reward)
