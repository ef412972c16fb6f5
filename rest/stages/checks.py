"""What cannot work with this text, this model and these settings together: refused before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from rest.data.corpus import Gold
from rest.errors import UserError
from rest.journal import say
from rest.model.layers import TransformerSettings
from rest.reward.composition import Cached
from rest.reward.learned.saved import SavedReward
from rest.reward.reward import Groups, Reward, identify, name_of
from rest.stages.inputs import Inputs, judge_of


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
    _refuse_trained_on(e.evaluation.judge, None if inputs.learns_reward else e.reward)
    if inputs.learns_reward and e.reward.ratings:
        inputs.human_ratings(1)
    _ = inputs.untranslated  # which refuses a text without sentences


def _refuse_trained_on(judge: Reward | None, reward: Reward | None) -> None:
    """UserError where the judge is the reward, or a part of it: of a learned one, the same network."""
    if judge is None or reward is None:
        return
    learned_from = {known for known, _ in _parts(reward.function)}
    for known, name in _parts(judge.function):
        if known in learned_from:
            raise UserError(
                f"evaluation.judge: {name} is in the reward too; a judge is evidence only where nothing trains on it"
            )


def _parts(function: Any) -> Iterator[tuple[str, str]]:
    """What the functions that a reward is joined from are known by, and their names; of learned ones the network."""
    joined = [getattr(function, name, None) for name in ("cheap", "dear")] + [*getattr(function, "rewards", ())]
    if rewards := [part.function for part in joined if isinstance(part, Reward)]:
        for part in rewards:
            yield from _parts(part)
    elif isinstance(function, Cached):
        yield from _parts(function.function)
    elif isinstance(function, SavedReward):
        yield function.network_identity, name_of(function)
    else:
        yield json.dumps(identify(function), sort_keys=True), name_of(function)


def try_rewards(inputs: Inputs) -> None:
    """Call rewards and raters on a few references."""
    e, dev = inputs.experiment, inputs.corpus.dev
    few = dev.take(np.repeat(np.arange(min(4, len(dev))), 2))  # twice: to be compared
    texts = few.sources, few.references or few.sources, few.references
    if not inputs.learns_reward:
        inputs.on_dev(inputs.given_reward)
    groups = Groups.of_samples(len(few) // 2, 2)
    for reward in [*([] if inputs.learns_reward else [inputs.given_reward]), judge_of(inputs)]:
        if reward is not None:
            reward(*texts, groups)
    if not inputs.learns_reward and inputs.untranslated is not None:  # for which there are no references
        inputs.given_reward(*texts[:2], None, groups)
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
