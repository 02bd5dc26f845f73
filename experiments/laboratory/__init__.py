"""The parts of ``experiments/meta_gradients.py``, one question a file."""
