"""Which layers of a published encoder tell how good a translation is: a head fitted to ratings at each depth.

    .venv/bin/python scripts/benchmarks/encoder_depths.py experiments/qe_reward.py:apart --out DIR \\
        --corpus.directory DIRECTORY --reward.ratings.0.directory DIRECTORY --reward.start.folder FOLDER

FILE[:variant] is an experiment whose reward learns from files of ratings and starts from an encoder. Every setting is a
flag; nothing is trained or written. All texts are read once, by the whole encoder. At each depth the head alone is
fitted to the ratings of the training documents by ridge regression, with that of the penalties `reward.ridge` under
which it agrees best with the dev documents by `reward.choose`. Then: Pearson's correlation and the share of a source's
pairs that are ranked right, on dev, which is to choose by, and on the test documents of each set of ratings.
"""

import sys
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rich.table import Table

from rest.commands.flags import OutFlags, console, run_of
from rest.data.batches import Batch
from rest.learning.apply import per_sequence
from rest.ratings.record import RatingSplits, by_kind, mix, split
from rest.reward.learned.encoder import View
from rest.reward.learned.network import LearnedReward, RewardNetwork
from rest.reward.learned.reading import encoded
from rest.statistics.correlation import pearson, ranked_right
from rest.statistics.regression import ridge


@dataclass(frozen=True)
class Depths:
    """What the encoder finds of each pair after every layer, the embedding first."""

    view: View

    def __call__(self, network: RewardNetwork, batch: Batch) -> Float[Array, "B Q P L D"]:
        """P parts of a pair: one of a row with both texts, four of texts that are read apart; bfloat16."""
        body = network.body
        found = encoded(body, lambda states: jnp.concatenate(states, -1), self.view, batch, None)
        parts = found.reshape(*found.shape[:2], -1, body.settings.layers + 1, body.settings.width)
        return parts.astype(jnp.bfloat16)


def main() -> None:
    _, run = run_of("plan", sys.argv[1:], OutFlags)
    settings = run.experiment.reward
    start = replace(settings.start, depth=None).read()
    parts = split(mix([file.load() for file in settings.ratings]), settings.split)
    reward = LearnedReward.new(start, settings.batch.of(run.experiment.batch))

    def found(rows: str) -> Float[np.ndarray, "n P L D"]:
        rated = getattr(parts, rows)
        examples = reward.shared(reward.examples(rated.sources, rated.hypotheses), rated.sources)
        view, pad_id = Depths(start.view), start.tokenizer.pad_id
        return per_sequence(view, reward.network, examples, reward.batch, pad_id=pad_id, shown=rows)

    states = RatingSplits(*map(found, RatingSplits._fields))
    sets = by_kind(parts.test)
    table = Table("depth", "penalty", "dev: Pearson", "pairs", *(f"{each.sets[0]}: Pearson | pairs" for each in sets))
    for depth in range(1, start.settings.layers + 1):
        x = RatingSplits(*(each[:, :, depth].reshape(len(each), -1).astype(np.float64) for each in states))
        fitted = ridge(x.train, parts.train.scores, settings.ridge)
        scores = [x.dev @ weights + bias for weights, bias in fitted]
        best = int(np.argmax([settings.choose(each, parts.dev.scores, parts.dev.groups) for each in scores]))
        weights, bias = fitted[best]
        own = pearson(scores[best], parts.dev.scores), ranked_right(scores[best], parts.dev.scores, parts.dev.groups)
        row, test = [], x.test @ weights + bias
        for each in sets:
            mine = np.array([kind == each.kinds[0] for kind in parts.test.kinds])
            agreed = pearson(test[mine], each.scores), ranked_right(test[mine], each.scores, each.groups)
            row.append(" | ".join(f"{number:.3f}" for number in agreed))
        table.add_row(str(depth), f"{settings.ridge[best]:g}", *(f"{number:.3f}" for number in own), *row)
    console().print(table)


if __name__ == "__main__":
    main()
