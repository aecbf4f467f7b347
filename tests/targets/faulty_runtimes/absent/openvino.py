"""Stands in the way of the real one: as if it were not installed."""

raise ImportError("No module named 'openvino'")
