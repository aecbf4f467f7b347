"""What a target prefers, found out by measuring small generated models: channel steps and the int8 format."""
