"""One file a question; each runs alone and ends in a page."""
