"""What cannot work with this text, this model and these settings together: refused before anything is trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from rest.data.corpus import Gold
from rest.errors import UserError
from rest.journal import say
from rest.model.layers import TransformerSettings
from rest.reward.reward import Groups
from rest.stages.inputs import Inputs


def check(inputs: Inputs) -> None:
    """UserError for what cannot work, a warning for what hardly does."""
    e, model = inputs.experiment, inputs.experiment.model
    if isinstance(model, TransformerSettings) and model.positions == "learned":
        for name in ("source_tokens", "target_tokens"):
            if getattr(e.batch, name) > model.max_positions:
                raise UserError(
                    f"batch.{name} {getattr(e.batch, name)} is more than model.max_positions {model.max_positions}"
                )
    if e.evaluation.bleu_tokenizer == "13a" and without_spaces(inputs.corpus.dev.references or []):
        say(
            "warning: evaluation.bleu_tokenizer 13a parts words at spaces, which these references hardly have: "
            "set zh for Chinese, char for Japanese or Thai"
        )
    try_rewards(inputs)
    if inputs.learns_reward and e.reward.ratings:
        inputs.human_ratings(1)
    _ = inputs.untranslated  # which refuses a text without sentences


def try_rewards(inputs: Inputs) -> None:
    """Call rewards and raters on a few references."""
    e, dev = inputs.experiment, inputs.corpus.dev
    few = dev.take(np.repeat(np.arange(min(4, len(dev))), 2))  # twice: to be compared
    texts = few.sources, few.references or few.sources, few.references
    if not inputs.learns_reward:
        inputs.on_dev(e.reward)
    for reward in [*([] if inputs.learns_reward else [e.reward]), e.evaluation.judge]:
        if reward is not None:
            reward(*texts, Groups.of_samples(len(few) // 2, 2))
    if inputs.learns_reward and e.reward.rater is not None:
        _try_rater(e.reward.rater, texts, inputs.corpus.gold)


def _try_rater(rater: Any, texts: tuple[list[str], list[str], list[str] | None], gold: Gold | None) -> None:
    """UserError for a rater that cannot rate these."""
    name = type(rater).__name__
    try:
        found = np.asarray(rater.rate(*texts, gold, 0), np.float32)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"reward.rater {name}: raised {type(error).__name__}: {error}") from error
    if found.shape != (len(texts[0]),) or not np.isfinite(found).all():
        raise UserError(f"reward.rater {name}: returned {found.tolist()} for {len(texts[0])} hypotheses")


def without_spaces(texts: list[str]) -> bool:
    """Whether words are not parted by spaces: half of all sentences with ten characters or more have none."""
    long = [text for text in texts if len(text) >= 10]
    return bool(long) and sum(" " not in text for text in long) > len(long) / 2
