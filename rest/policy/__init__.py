"""What translates: a network with its tokenizer and identity, sampling and beam search."""
