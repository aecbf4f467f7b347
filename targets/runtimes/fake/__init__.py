"""No runtime at all: the target ``fake``, whose costs come from a formula, for tests and for trying things out."""
