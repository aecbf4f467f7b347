"""Training a pruned network again: losses, teacher, regularization, and how this machine trains fastest."""
