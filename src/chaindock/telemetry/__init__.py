"""Logs and metrics. Metrics are not imported here: the CLI does without."""

from chaindock.telemetry.logs import RateLimitedLog as RateLimitedLog
from chaindock.telemetry.logs import activate as activate
from chaindock.telemetry.logs import active as active
from chaindock.telemetry.logs import bind as bind
from chaindock.telemetry.logs import bound as bound
from chaindock.telemetry.logs import configure as configure
from chaindock.telemetry.logs import get_logger as get_logger
from chaindock.telemetry.logs import is_on as is_on
from chaindock.telemetry.logs import unbind as unbind
