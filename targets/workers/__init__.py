"""Processes that load, run and time models, and the side of this process that starts, asks and watches them.

Every runtime on this machine is reached through them: what crashes, hangs or eats all memory is only a worker.
"""
