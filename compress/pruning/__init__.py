"""Which channels of a network belong together, which matter least, and the surgery that takes them out."""
