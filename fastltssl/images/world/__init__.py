"""The embedded world: 40 classes of drawn pictograms, painted from a seed by numpy alone."""
