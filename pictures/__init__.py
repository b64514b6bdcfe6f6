"""What becomes of a picture before a model sees it: pure functions."""
