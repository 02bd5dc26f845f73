"""Where images come from, how a long tail is cut out of them, and how they are augmented."""
