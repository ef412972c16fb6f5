"""What scores: the interface and its guards, metrics, learned rewards and how far to trust them."""
