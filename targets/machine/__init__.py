"""The machine itself, read from the operating system: its CPUs and how to be pinned to them, memory, and what it is."""
