"""Hundreds of configurations at once: the space, the trials, the joint sweep."""
