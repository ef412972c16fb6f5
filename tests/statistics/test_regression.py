"""Ridge regression: what it minimises, looked at by a solver that knows nothing of it."""

import numpy as np
from scipy.optimize import minimize

from rest.statistics.regression import ridge


def test_ridge_minimises_the_mean_squared_error_and_the_penalty_of_standardised_weights():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)) * [1.0, 5.0, 0.2] + [0.0, 3.0, -1.0]
    y = x @ [0.5, -0.1, 2.0] + 0.3 + rng.normal(size=40)
    z = (x - x.mean(0)) / x.std(0)
    fitted = ridge(x, y, (0.0, 0.1, 10.0))
    for penalty, (weights, bias) in zip((0.0, 0.1, 10.0), fitted, strict=True):

        def cost(w, penalty=penalty):
            return np.mean((z @ w[:3] + w[3] - y) ** 2) + penalty * (w[:3] ** 2).sum()

        found = minimize(cost, np.zeros(4), tol=1e-12).x
        np.testing.assert_allclose(x @ weights + bias, z @ found[:3] + found[3], atol=1e-4)
    assert [np.std(x @ weights) for weights, _ in fitted] == sorted((np.std(x @ w) for w, _ in fitted), reverse=True)


def test_a_feature_that_does_not_vary_gets_no_weight():
    x = np.stack([np.ones(10), np.arange(10.0)], 1)
    [(weights, bias)] = ridge(x, 2 * np.arange(10.0) + 1, (1e-9,))
    np.testing.assert_allclose([*weights, bias], [0.0, 2.0, 1.0], atol=1e-6)
