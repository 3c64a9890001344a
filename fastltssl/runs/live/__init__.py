"""Experiments that train through the encoder, from images."""
