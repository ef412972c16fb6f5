"""What ReST does on IWSLT14, German to English, by the best text of a source against the worst: two seeds."""

from __future__ import annotations

from typing import Any

from result_numbers import Metrics, control, difference, of, over_seeds, read, table

REWARDS = {
    "consensus": "agreement of the samples, by chrF and BLEU",
    "references": "chrF and BLEU with the training text's translations",
    "bleu": "sentence BLEU with them",
}
TEXT = (("bleu", "BLEU, greedy"), ("chrf", "chrF, greedy"), ("ter", "TER, greedy"), ("bleu_beam", "BLEU, beam"),
        ("chrf_beam", "chrF, beam"))  # fmt: skip


def variants() -> dict[str, Any]:
    return read("iwslt14_preferences")["variants"]


def iwslt14_policies(variant: str) -> list[list[Metrics | None]]:
    """BC, BC continued and ReST: the metrics of each seed."""
    runs = [run["rows"] for run in variants()[variant]["seeds"].values()]
    return [[of(rows, "bc") for rows in runs], [control(rows)[0] for rows in runs],
            [of(rows, "rest", 1) for rows in runs]]  # fmt: skip


def iwslt14_joint(variant: str) -> Metrics:
    """ReST less BC continued, both seeds together."""
    return variants()[variant]["joint"]["BC continued"]


def iwslt14() -> str:
    bc, longer, _ = iwslt14_policies("bleu")
    policies = {"BC": bc, "BC continued": longer}
    policies |= {f"ReST, {name}": iwslt14_policies(variant)[2] for variant, name in REWARDS.items()}
    shown = [[name, *(over_seeds([each or {} for each in found], key, 1) for key, _ in TEXT)]
             for name, found in policies.items()]  # fmt: skip
    paired = [[name, *(difference(iwslt14_joint(variant), key, 2) for key, _ in TEXT)]
              for variant, name in REWARDS.items()]  # fmt: skip
    first, heads = bc[0], [head for _, head in TEXT]
    assert first is not None
    return f"""\
    {read("iwslt14_preferences")["command"]}

TEDX.dev2012, tokenized and lowercased as published scores are; two seeds of a BC that has converged on 22,060 pairs.
One Grow step of 32 samples and the 4-best of beam search for each source, then CPO on the best and the worst text of a
source, 300 updates, checkpoints chosen on dev by greedy BLEU. Means and each seed. TER is better when lower.

{table(["policy, and by what reward", *heads], shown)}

ReST less BC continued, both seeds together, paired over sources:

{table(["reward", *heads], paired)}

BLEU `{first["bleu_signature"]}`, chrF `{first["chrf_signature"]}`."""
