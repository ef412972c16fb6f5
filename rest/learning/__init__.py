"""How parameters change: losses, estimators, the update loop, checkpoints, devices."""
