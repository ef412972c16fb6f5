"""Attention against numpy and JAX's own, and which shapes cuDNN's kernel is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest.learning.mesh import has_cudnn
from rest.model.attention import _fused, _kernel_takes, attend

B, H, T, M, K = 2, 3, 4, 6, 8


def inputs(dtype=jnp.float32, queries: int = T, keys: int = M) -> tuple[jax.Array, ...]:
    """Queries, keys, values, a mask of packed rows whose last query may see nothing, and a bias."""
    random = np.random.default_rng(0)
    q, k, v = (jnp.asarray(random.standard_normal((B, H, n, K)), dtype) for n in (queries, keys, keys))
    mask = random.random((B, queries, keys)) < 0.6
    mask[:, :, 0], mask[:, -1] = True, False
    return q, k, v, jnp.asarray(mask), jnp.asarray(random.standard_normal((1, H, queries, keys)), jnp.float32)


@pytest.mark.parametrize("biased", [True, False])
def test_attention_is_a_softmax_of_what_may_be_seen(biased):
    q, k, v, mask, bias = inputs()
    found = attend(q, k, v, mask, bias if biased else None)
    logits = np.einsum("bhtk,bhmk->bhtm", q, k, dtype=np.float64) + (np.asarray(bias) if biased else 0)
    raised = np.exp(logits) * np.asarray(mask)[:, None]
    wanted = np.einsum("bhtm,bhmk->bhtk", raised[:, :, :-1] / raised[:, :, :-1].sum(-1, keepdims=True), v)
    np.testing.assert_allclose(found[:, :, :-1], wanted, atol=1e-5)
    assert np.isfinite(found).all()  # also where nothing may be seen
    theirs = jax.nn.dot_product_attention(
        *(x.swapaxes(1, 2) for x in (q, k, v)), bias if biased else None, mask[:, None], scale=1.0
    )
    np.testing.assert_allclose(found, theirs.swapaxes(1, 2), atol=1e-5)


def test_the_softmax_of_bfloat16_is_float32():
    q, k, v, mask, bias = inputs(jnp.bfloat16)
    found, exact = attend(q, k, v, mask, bias), attend(*(x.astype(jnp.float32) for x in (q, k, v)), mask, bias)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.03)  # values are rounded to 1/256


def test_the_kernel_is_given_what_it_takes():
    def takes(dtype, queries, keys, width):
        return _kernel_takes(*(jnp.zeros((B, H, n, width), dtype) for n in (queries, keys)))

    assert takes(jnp.bfloat16, 64, 96, 64)
    assert not takes(jnp.float32, 64, 96, 64)
    assert not any(takes(jnp.bfloat16, *wrong) for wrong in [(63, 96, 64), (64, 95, 64), (64, 96, 60), (64, 96, 136)])
    assert not takes(jnp.bfloat16, 8, 96, 64)  # a step of decoding


@pytest.mark.skipif(not has_cudnn(), reason="there is no GPU with cuDNN")
def test_the_kernel_agrees_with_the_plain_way():
    q, k, v, mask, bias = inputs(jnp.bfloat16, 64, 96)

    def loss(way, q, k, v, bias):
        return (way(q, k, v, mask, bias)[:, :, :-1].astype(jnp.float32) ** 2).mean()

    exact = tuple(x.astype(jnp.float32) for x in (q, k, v))
    slopes = jax.value_and_grad(loss, (1, 2, 3, 4))
    found, wanted = slopes(_fused, q, k, v, bias), slopes(attend, *exact, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02), found, wanted)
