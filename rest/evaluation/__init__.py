"""How good a policy is: rewards and metrics with intervals, Best-of-N, minimum Bayes risk."""
