"""Ready-made tasks: one readable file each, with what it is expected to reach in ``expected.json``."""

from targets.packages import check_not_shadowed

check_not_shadowed()
