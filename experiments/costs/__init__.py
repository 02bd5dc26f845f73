"""The parts of experiments/meta_cost.py: which steps, how they are measured, goals, page."""
