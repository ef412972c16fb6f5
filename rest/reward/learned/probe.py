"""The heads of a reward fitted alone, to what its network finds as it is.

Then everything is trained together (linear probing, then fine-tuning: Kumar et al. 2022), so that training starts from
a reward that is useful already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from rest.data.batches import Examples
from rest.reward.learned.network import LearnedReward, left_out
from rest.statistics.regression import ridge


def probe(
    reward: LearnedReward,
    training: Examples,
    held_out: Examples,
    penalties: Sequence[float],
    agreement: Callable[[np.ndarray], float],
) -> tuple[LearnedReward, float]:
    """Fit the heads to the column `rating` by ridge regression, and tell with which penalty.

    It is the first whose scores of the rows held out agree best with their ratings, where there are several.
    """
    features = reward.features(training, "reward: first look").astype(np.float64)
    ratings, group = training.columns["rating"].astype(np.float64), jnp.asarray(training.columns["group"])
    heads = []
    for head in range(reward.heads):
        kept = np.ones(len(ratings), bool) if reward.heads == 1 else ~np.asarray(left_out(group, head))
        heads.append(ridge(features[kept], ratings[kept], penalties))
    fitted = [
        {"kernel": np.stack([weights for weights, _ in each], 1), "bias": np.asarray([bias for _, bias in each])}
        for each in zip(*heads, strict=True)
    ]
    best = 0
    if len(penalties) > 1:
        seen = reward.features(held_out).astype(np.float64)
        best = int(np.argmax([agreement((seen @ head["kernel"] + head["bias"]).mean(1)) for head in fitted]))
    return reward.with_network(reward.network.with_part("head", fitted[best])), penalties[best]
