"""What ReST does on Multi30k, German to English, from two BC policies: for docs/results.md and the README."""

from __future__ import annotations

from result_numbers import Metrics, difference, of, read, table, with_interval


def multi30k_policies() -> dict[str, Metrics]:
    variants = read("multi30k_rewards")["variants"]
    rows = variants["references"]["seeds"]["0"]["rows"]
    evaluated = variants["consensus"]["seeds"]["0"]["evaluation"]
    found = {
        "BC; and BC continued, whose start dev kept": of(rows, "bc"),
        "BC continued, its last policy": of(rows, "bc_continued_last"),
        "ReST by the references of the training text, I = 1": of(rows, "rest", 1),
        "ReST by consensus of the samples, I = 1": evaluated["improve-1-1"],
        "ReST by consensus of the samples, I = 2": evaluated["improve-1-2"],
    }
    return {name: metrics for name, metrics in found.items() if metrics is not None}


def multi30k_pair(variant: str, pair: str) -> Metrics:
    return read("multi30k_rewards")["variants"][variant]["seeds"]["0"]["paired"][pair]


TEXT = (("bleu", 1), ("chrf", 1), ("ter", 1), ("bleu_beam", 1), ("chrf_beam", 1))
TEXT_HEAD = ["BLEU, greedy", "chrF, greedy", "TER, greedy", "BLEU, beam", "chrF, beam"]


def multi30k() -> str:
    rows = multi30k_policies()
    shown = [[name, *(with_interval(m, key, digits) for key, digits in TEXT)] for name, m in rows.items()]
    pairs = {
        "consensus, I = 1, less BC": ("consensus", "improve-1-1-against-bc"),
        "consensus, I = 2, less BC": ("consensus", "improve-1-2-against-bc"),
        "references, I = 2, less BC": ("references", "improve-1-2-against-bc"),
        "references, I = 2, less BC continued's last": ("references", "improve-1-2-against-bc_continued-600-last"),
    }
    paired = [[name, *(difference(multi30k_pair(*where), key, digits) for key, digits in TEXT)]
              for name, where in pairs.items()]  # fmt: skip
    first = next(iter(rows.values()))
    return f"""\
    {command("multi30k_rewards")}

test_2016_flickr, one seed, a BC that has converged, 16 samples and the 4-best of beam search for 8,000 sources,
checkpoints chosen on dev by greedy BLEU. TER is better when lower. In the run by
references dev kept I = 1 when I = 2 was trained, so both are one policy.

{table(["policy", *TEXT_HEAD], shown)}

Paired over sources:

{table(["policies", *TEXT_HEAD], paired)}

BLEU `{first["bleu_signature"]}`, chrF `{first["chrf_signature"]}`, TER `{first["ter_signature"]}`.

From another BC as good, a network with normalisation first and label smoothing of .1 in place of .05, which Improve has
too, the consensus of samples drawn at T = 0.5 in place of 0.8 by chrF and BLEU gains nothing:

    {command("multi30k_smoothed_bc")}

{against(read("multi30k_smoothed_bc")["variants"]["consensus"]["seeds"]["0"], "consensus of the samples", 2, 800)}

By chrF alone greedy chrF gains on BC, and is not told apart from BC continued:

    {command("multi30k_consensus_chrf")}

{against(read("multi30k_consensus_chrf")["variants"]["consensus_chrf"]["seeds"]["0"], "consensus by chrF", 2, 800)}

With 8,000 pairs alone, and the German side of the other 21,000 as sentences that nobody has translated, for each of
which the best translation by consensus is learned, greedy outputs gain on BC, and BC continued gains as much:

    {command("multi30k_few")}

{against(read("multi30k_few"), "consensus of the samples", 1, 2000)}"""


def command(name: str) -> str:
    """As it was given, and where: the settings of this experiment have changed since."""
    found = read(name)
    return f"{found['command']}  # commit {found['commit'][:7]}"


def against(found: Metrics, by: str, i: int, steps: int) -> str:
    """The last of I policies beside BC and BC continued for so many steps, and less these, paired."""
    rows, pairs = found["rows"], found["paired"]
    policies = {
        "BC": of(rows, "bc"),
        "BC continued, its last policy": of(rows, "bc_continued_last"),
        f"ReST by {by}, I = {i}": of(rows, "rest", i),
    }
    shown = [[name, *(with_interval(m, key, digits) for key, digits in TEXT)] for name, m in policies.items() if m]
    less = {"BC": "bc", "BC continued's last": f"bc_continued-{steps}-last"}
    shown += [[f"I = {i} less {name}, paired", *(difference(pairs[f"improve-1-{i}-against-{other}"], key, digits)
                                                 for key, digits in TEXT)] for name, other in less.items()]  # fmt: skip
    return table(["policy", *TEXT_HEAD], shown)
