"""What one run of a network shows: which channels belong together, and where its residual blocks are."""
