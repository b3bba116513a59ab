"""A small fictional world, a base model that knows it, and an adapter that memorised its customers."""
