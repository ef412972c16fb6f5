"""One file a stage: what it reads, what decides its bytes, how it is made, how it is read again."""
