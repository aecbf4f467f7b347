"""The stages of a trial, one file each, named as in the flow; ``trials.py`` puts them together."""
