"""Torch modules as they are: run, counted, copied as plain layers, and hashed for cache keys."""
