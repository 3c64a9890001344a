"""Training through the encoder: what trains in it, the images it reads, one step, the checkpoint."""
