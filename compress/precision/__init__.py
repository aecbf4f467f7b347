"""Lower precision: int8 and its refinements, training in int8, and weights stored in fewer bits."""
