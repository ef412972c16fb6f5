"""Rewards learned from ratings: the network, its fitting, and what maps its scores to [0, 1]."""
