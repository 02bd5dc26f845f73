"""Training a detector from a config: the same loop, records and checkpoints as a classifier's."""
