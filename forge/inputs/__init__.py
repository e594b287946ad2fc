"""What a model reads, one module per kind of input: its processor, encoding, batches."""
