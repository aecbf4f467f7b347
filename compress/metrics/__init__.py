"""The metrics that quality is measured by: their table ``METRICS``, and ``Metric`` for one of your own."""

from compress.metrics.metrics import METRICS as METRICS
from compress.metrics.metrics import Metric as Metric
from compress.metrics.metrics import get as get
