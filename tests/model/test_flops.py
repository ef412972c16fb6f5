"""What arithmetic costs: worked by hand, and as XLA counts it."""

import jax
import jax.numpy as jnp
import pytest

from rest.data.batches import Batch
from rest.learning.losses import NLL
from rest.model.flops import forward_flops, update_flops
from rest.model.layers import TransformerSettings
from rest.model.network import Network
from rest.model.transformer import Transformer
from rest.policy.policy import PolicyObjective


def test_products_worked_by_hand():
    s = TransformerSettings(width=4, heads=2, feed_forward=8, encoder_layers=1, decoder_layers=2)
    projection, feed_forward = 2 * 4 * 4, 2 * 2 * 4 * 8
    encoder = 4 * projection + feed_forward + 4 * 4 * 3  # of one of 3 positions, which sees 3
    decoder = 6 * projection + feed_forward + 4 * 4 * (5 + 3)  # of one of 5, which sees 5 and 3
    whole = 3 * (encoder + 2 * 2 * projection) + 5 * (2 * decoder + 2 * 4 * 10)
    assert forward_flops(s, 10, 1, 3, 5) == whole
    assert forward_flops(s, 10, 7, 3, 5) == 7 * whole
    assert forward_flops(s, 0, 1, 3, 5) == whole - 5 * 2 * 4 * 10
    assert update_flops(whole) == 3 * whole


def test_xla_counts_the_same():
    """Of the program before it is optimised, which computes the logits twice and sees small things too."""
    s = TransformerSettings(256, 8, 512, encoder_layers=1, decoder_layers=1, head_width=24, gated=True, dropout=0.0)
    network = Network.shaped(s, lambda rngs: Transformer(s, 1000, pad_id=0, rngs=rngs))
    rows, source, target = 8, 48, 64

    def loss(parameters, batch):
        return PolicyObjective(NLL())(network.with_parameters(parameters).module, batch, None, {}).sum

    def ids(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    sides = [ids(rows, source)] * 3 + [ids(rows, target)] * 5
    batch = Batch(*sides, sequence_ids=ids(rows, 4), columns={})
    counted = jax.jit(jax.value_and_grad(loss)).lower(network.parameters, batch).cost_analysis()["flops"]
    logits = rows * target * 2 * s.width * 1024  # the vocabulary is padded to a multiple of 64
    forward = forward_flops(s, 1024, rows, source, target)
    assert counted == pytest.approx(update_flops(forward) + logits, rel=0.02)
