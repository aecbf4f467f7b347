"""A run on disk: what was asked, the record of what happened, the cache of what was computed."""
