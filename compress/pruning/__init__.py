"""What may be cut out of a network (groups of channels, residual blocks), what matters least, and the cut itself."""
