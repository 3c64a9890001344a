"""The feature cache: written once, verified when opened, split into protocols."""
