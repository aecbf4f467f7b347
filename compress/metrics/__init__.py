"""What quality is measured by: ``compress.metrics.METRICS``."""

from compress.metrics.metrics import METRICS as METRICS
from compress.metrics.metrics import Metric as Metric
from compress.metrics.metrics import get as get
