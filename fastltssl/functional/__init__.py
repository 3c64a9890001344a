"""The equations, one pure function each: class priors, losses, heads, metrics. No file, no state, no device."""
