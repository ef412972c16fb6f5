"""Learning rates by depth: what each part's updates are multiplied with, and when the body begins to move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rest.errors import UserError
from rest.learning.depth import ByDepth
from rest.learning.optimizers import Adam
from rest.reward.learned.network import LearnedReward

PARAMETERS = {
    "body": {
        "embedding": 1.0,
        "embedding_norm": {"scale": 1.0},
        "positions": 1.0,
        "layers": {0: {"attention": {"query": {"kernel": 1.0}}}, 1: {"kernel": 1.0}, 2: {"kernel": 1.0}},
        "pooler": {"kernel": 1.0},
    },
    "mixture": {"gamma": 1.0},
    "head": {"kernel": 1.0},
}


def test_the_rate_falls_from_the_heads_to_the_embeddings():
    found = ByDepth(body=0.8, decay=0.5).factors(PARAMETERS)
    assert found == {
        "body": {
            "embedding": 0.1,
            "embedding_norm": {"scale": 0.1},
            "positions": 0.1,
            "layers": {0: {"attention": {"query": {"kernel": 0.2}}}, 1: {"kernel": 0.4}, 2: {"kernel": 0.8}},
            "pooler": {"kernel": 0.8},
        },
        "mixture": {"gamma": 1.0},
        "head": {"kernel": 1.0},
    }


def test_the_body_of_a_policy_has_layers_too(lively, batch):
    parameters = LearnedReward.new(lively, batch).network.parameters
    found = ByDepth(body=0.5, decay=0.5).factors(parameters)
    assert set(jax.tree.leaves(found["body"]["decoder"])) == {0.5} and found["body"]["embedding"] == 0.25
    assert set(jax.tree.leaves(found["head"])) == {1.0}


def updates(optimizer, gradients: list) -> list:
    """What follows from each gradient in turn."""
    transformation, out = optimizer(), []
    state = transformation.init(gradients[0])
    for gradient in gradients:
        found, state = transformation.update(gradient, state, gradient)
        out.append(found)
    return out


def test_a_body_that_is_frozen_stays_and_is_in_no_clipped_norm():
    gradient = {"body": {"layers": {0: jnp.full(1, 40.0)}}, "head": jnp.full(1, 30.0)}
    found = updates(ByDepth(optax.identity, body=0.1, frozen_steps=2), [gradient] * 3)
    np.testing.assert_allclose([u["body"]["layers"][0][0] for u in found], [0, 0, 4], rtol=1e-6)
    assert [u["head"][0] for u in found] == [30] * 3
    clipped = updates(ByDepth(lambda: optax.clip_by_global_norm(5.0), frozen_steps=1), [gradient] * 2)
    np.testing.assert_allclose([u["head"][0] for u in clipped], [5, 3], rtol=1e-6)
    np.testing.assert_allclose(clipped[1]["body"]["layers"][0], [0.4], rtol=1e-6)


def test_equal_settings_are_one_compiled_update():
    assert ByDepth() == ByDepth() and hash(ByDepth(Adam())) == hash(ByDepth(Adam()))


@pytest.mark.parametrize("wrong", [{"body": -0.1}, {"decay": 0.0}, {"decay": 1.1}, {"frozen_steps": -1}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(UserError, match="optimizer: body"):
        ByDepth(**wrong)


def test_a_body_at_the_full_rate_is_frozen_too():
    gradient = {"body": {"layers": {0: jnp.ones(1)}}, "head": jnp.ones(1)}
    found = updates(ByDepth(optax.identity, body=1.0, decay=1.0, frozen_steps=1), [gradient] * 2)
    assert [(u["body"]["layers"][0][0], u["head"][0]) for u in found] == [(0, 1), (1, 1)]
