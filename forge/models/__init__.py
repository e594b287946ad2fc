"""From a path to a model: loading, heads, layers, LoRA, vocabularies, one batched forward pass."""
