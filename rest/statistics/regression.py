"""Linear regression with a penalty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def ridge(
    x: Float[np.ndarray, "n F"], y: Float[np.ndarray, " n"], penalties: Sequence[float]
) -> list[tuple[Float[np.ndarray, " F"], float]]:
    """Weights and bias for each penalty: those with the least mean squared error plus penalty times the sum of squared
    weights, where weights are of features with mean 0 and deviation 1 and the bias is not penalised (Hoerl & Kennard
    1970). What is returned is for the features as they are.
    """
    mean, spread = x.mean(0), x.std(0) + 1e-6
    z = (x - mean) / spread
    gram, moment = z.T @ z, z.T @ (y - y.mean())
    found = []
    for penalty in penalties:
        weights = np.linalg.solve(gram + penalty * len(z) * np.eye(len(gram)), moment) / spread
        found.append((weights, float(y.mean() - mean @ weights)))
    return found
