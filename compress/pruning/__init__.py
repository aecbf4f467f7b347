"""What may be cut out of a network (groups of channels, blocks, repeats), what matters least, and the cut itself."""
