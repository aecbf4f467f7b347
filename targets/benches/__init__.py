"""Models timed against each other: ``compare``, ``bench``, what a reader should know of the numbers, and what changed
since a bench that was saved.
"""
