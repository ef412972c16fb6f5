"""Products whose factors are rounded to bfloat16: their values, their gradients, and networks made of them."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from rest.model.layers import TransformerSettings
from rest.model.normaliser import Normaliser, normaliser
from rest.model.products import rounded_product
from rest.model.transformer import Transformer


def rounded(x: np.ndarray) -> np.ndarray:
    """To bfloat16, by another implementation than JAX's; float64."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kernel_type", [jnp.float32, jnp.bfloat16])
def test_factors_are_rounded_and_sums_are_not_forwards_and_backwards(kernel_type):
    x, to_y = drawn(5, 6), drawn(5, 4, seed=1)
    kernel = jnp.asarray(drawn(6, 4, seed=2), kernel_type)
    y, backward = jax.vjp(rounded_product, jnp.asarray(x), kernel)
    to_x, to_kernel = backward(jnp.asarray(to_y))
    weights = rounded(np.asarray(kernel, np.float32))
    assert (y.dtype, to_x.dtype, to_kernel.dtype) == (jnp.float32, jnp.float32, kernel_type)
    np.testing.assert_allclose(y, rounded(x) @ weights, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(to_x, rounded(to_y) @ weights.T, rtol=1e-6, atol=1e-6)
    found, of_its_type = np.asarray(to_kernel, np.float64), 1e-6 if kernel_type == jnp.float32 else 2**-8
    np.testing.assert_allclose(found, rounded(x).T @ rounded(to_y), rtol=of_its_type, atol=1e-6)
    assert np.abs(np.asarray(y) - x @ weights).max() > 1e-4  # not what unrounded factors give


@pytest.mark.parametrize("groups", [1, 2])
def test_the_normaliser_s_gradient_is_near_that_of_whole_factors(groups):
    states, weights, bias = (jnp.asarray(drawn(*shape)) for shape in ((3, 8, 16), (64, 16), (64,)))

    def gradients(products: str):
        how = Normaliser(groups=groups, products=products)
        return jax.grad(lambda *given: normaliser(*given, how)[0].sum(), argnums=(0, 1, 2))(states, weights, bias)

    for whole, low in zip(gradients("float32"), gradients("bfloat16"), strict=True):
        assert low.dtype == jnp.float32
        assert 0 < np.linalg.norm(low - whole) < 0.01 * np.linalg.norm(whole)


def test_a_network_of_rounded_products_is_near_the_one_of_whole_ones():
    settings = TransformerSettings(width=16, heads=2, feed_forward=24, encoder_layers=1, decoder_layers=1)
    nets = [
        Transformer(dataclasses.replace(settings, products=products), 70, pad_id=0, rngs=nnx.Rngs(0))
        for products in ("float32", "bfloat16")
    ]
    ids = jnp.asarray(np.random.default_rng(0).integers(1, 70, (2, 8)))
    places, mask = jnp.arange(8)[None], jnp.ones((2, 1, 8), bool)
    encoded = [net.encode(ids, places, mask) for net in nets]
    logits = [net.logits(states[:, 0]) for net, states in zip(nets, encoded, strict=True)]
    for whole, low in (encoded, logits):
        assert low.dtype == whole.dtype == jnp.float32
        np.testing.assert_allclose(low, whole, rtol=0.05, atol=0.05)
        assert not np.array_equal(low, whole)
    assert [net.arithmetic(1, 8, 8)[1] for net in nets] == ["float32", "bfloat16"]
