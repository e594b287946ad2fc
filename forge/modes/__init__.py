"""Each mode is a function that returns a `transformers.Trainer`."""
