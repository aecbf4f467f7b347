"""Where trials are carried out: in this process, in several on this machine, or on a cluster."""
