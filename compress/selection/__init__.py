"""Choosing among candidates by what was measured: feasibility, the front, its order, the picks and their verdicts."""
