"""Sweeps: hundreds of configurations trained jointly. The space, the trials, the sweep itself."""
