"""One experiment from its configuration to the folder that records it."""
