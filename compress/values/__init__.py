"""Plain data: configs and the space of them, constraints, candidates; their JSON and their hashes."""
