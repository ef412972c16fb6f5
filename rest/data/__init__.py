"""What is learned from: corpora, tokenizer, the scored dataset on disk, batches."""
