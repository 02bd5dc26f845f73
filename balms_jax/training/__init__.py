"""The training job: state, steps, stages, evaluation, checkpoints and records."""
