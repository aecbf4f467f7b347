"""Ready-made tasks: one readable file each, with what it is expected to reach in ``expected.json``."""
