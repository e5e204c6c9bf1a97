"""SIGTERM, by which clusters take a machine back: save, and say that there is more to do."""

import signal
import sys
from contextlib import contextmanager

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: start the same command again


class Preemption:
    """What to do about SIGTERM while a run is on: exit at once, or at a place that was asked for.

    Arguments
    ---------
    mark : callable, optional
        Called before the process ends.

    Example
    -------
    >>> preemption = Preemption()
    >>> with preemption.handled(), preemption.deferred():
    ...     signal.raise_signal(signal.SIGTERM)
    ...     preemption.asked
    True
    """

    def __init__(self, mark=None):
        self.mark = mark
        self.asked = False
        self._deferred = False

    @contextmanager
    def handled(self):
        """Within this, SIGTERM ends the process with `EXIT_STATUS`."""
        before = signal.signal(signal.SIGTERM, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextmanager
    def deferred(self):
        """Within this, SIGTERM is only noted, in `asked`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def exit(self):
        """Ends the process."""
        if self.mark is not None:
            self.mark()
        print("ended by SIGTERM: the same command goes on from here", file=sys.stderr)
        sys.exit(EXIT_STATUS)

    def _handle(self, signum, frame):
        self.asked = True
        if not self._deferred:
            self.exit()
