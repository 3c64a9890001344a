"""Training through the encoder: its modes, its images, its step."""
