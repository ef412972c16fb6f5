"""The network: an encoder-decoder transformer, low-rank adapters, weights from and to Hugging Face."""
