"""Stage one: the frozen encoder, and every image through it once into a cache."""
