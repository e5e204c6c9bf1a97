"""The batches of an epoch: which utterances go together, and which process computes them.

All of it is a function of the seed and the epoch, so that a resumed run finds its place by
counting, and another number of processes shares out the same batches.
"""

import json
import logging
import zlib

import numpy as np
from torch.utils.data import Sampler

from summarymixing.errors import InputError


def accumulation(global_seconds, batch_seconds, world_size):
    """Batches to accumulate so that all processes together take steps of `global_seconds`.

    Raises
    ------
    InputError
        If the global batch cannot be made of whole batches.

    Example
    -------
    >>> accumulation(480, 60, world_size=4)
    2
    """
    count = round(global_seconds / (batch_seconds * world_size))
    if count < 1 or abs(count * batch_seconds * world_size - global_seconds) > 1e-6:
        raise InputError(
            f"global_batch_seconds={global_seconds} is no multiple of batch_seconds x processes = "
            f"{batch_seconds} x {world_size}; "
            f"{max(1, count) * batch_seconds * world_size:g} is, or change batch_seconds"
        )
    return count


logger = logging.getLogger(__name__)


class Batches(Sampler):
    """Batches of similar durations, drawn anew every epoch and shared out over processes.

    An optimizer step takes `accumulation` batches on each of `world_size` processes. When an epoch
    does not divide evenly, its last step takes fewer, and processes without a batch of their own
    get an empty one. Each batch says the weight of its mean loss that makes the step's gradient
    the mean over all utterances of the step, whatever the batch that an utterance is in.

    Arguments
    ---------
    durations : numpy.ndarray
        (utterances,), in seconds.
    batch_seconds : float
        Audio in a batch at most, padding included. A longer utterance is a batch of its own.
    max_batch_utterances : int
    num_buckets : int
        Groups of similar duration, within which utterances are shuffled.
    seed : int
    accumulation : int
        Batches that a process sums the gradients of in one step.
    rank, world_size : int
        Of this process, and the number of processes.

    Example
    -------
    >>> batches = Batches(np.array([1.0, 4.0, 1.5, 3.5]), 8, 2, num_buckets=2, seed=1)
    >>> batches.set_epoch(1)
    >>> sorted(sorted(batch) for batch in batches)
    [[0, 2], [1, 3]]
    >>> batches.weight(0)
    1.0
    """

    def __init__(
        self,
        durations,
        batch_seconds,
        max_batch_utterances,
        num_buckets,
        seed,
        accumulation=1,
        rank=0,
        world_size=1,
    ):
        for name, value in (
            ("batch_seconds", batch_seconds),
            ("max_batch_utterances", max_batch_utterances),
            ("num_buckets", num_buckets),
            ("grad_accumulation_factor", accumulation),
        ):
            if not value > 0:
                raise InputError(f"{name} must be positive, got {value}")
        self.durations = np.asarray(durations, dtype=np.float64)
        self.batch_seconds = batch_seconds
        self.max_batch_utterances = max_batch_utterances
        self.num_buckets = num_buckets
        self.seed = seed
        self.accumulation = accumulation
        self.rank, self.world_size = rank, world_size
        self._saved = None
        self.set_epoch(1)

    def set_epoch(self, epoch, start=0):
        """Draws the batches of an epoch; iteration begins with the one of number `start`."""
        self.epoch, self.start = epoch, start
        generator = np.random.default_rng((self.seed, epoch))
        # Stable, so that equal durations do not depend on numpy's version.
        by_duration = np.argsort(self.durations, kind="stable")
        buckets = np.array_split(by_duration, self.num_buckets)
        self._order = np.concatenate([generator.permutation(bucket) for bucket in buckets])
        ends = []
        for bucket_end in np.cumsum([len(bucket) for bucket in buckets]):
            ends = self._fill(ends, bucket_end)
        ends = np.array(ends, dtype=np.int64)
        begins = np.concatenate([[0], ends[:-1]])
        shuffled = generator.permutation(len(ends))
        self._begins, self._ends = begins[shuffled], ends[shuffled]

    def _fill(self, ends, stop):
        """Cuts the order up to `stop` into batches, as full as they may be."""
        begin = ends[-1] if ends else 0
        longest = 0.0
        for place, duration in enumerate(self.durations[self._order[begin:stop]].tolist(), begin):
            longest = max(longest, duration)
            count = place - begin + 1
            over = longest * count > self.batch_seconds or count > self.max_batch_utterances
            if over and count > 1:
                ends.append(place)
                begin, longest = place, duration
        if begin < stop:
            ends.append(int(stop))
        return ends

    def __len__(self):
        """Batches of this process in an epoch, the empty one at its end included."""
        return -(-len(self._ends) // self.world_size)

    @property
    def steps(self):
        """Optimizer steps in an epoch."""
        return -(-len(self) // self.accumulation)

    def __iter__(self):
        """Yields lists of indices into `durations`."""
        return map(self.batch, range(self.start, len(self)))

    def batch(self, number):
        """The indices of a batch of this process."""
        return self.at(self.place(number)[1])

    def at(self, place):
        """The indices of a batch among those of all processes."""
        if place >= len(self._ends):
            return []
        return self._order[self._begins[place] : self._ends[place]].tolist()

    def longest(self):
        """The number at which some process has the batch with the most audio, padding included."""

        def padded(place):
            batch = self.at(place)
            return len(batch) * self.durations[batch].max()

        return max(range(len(self._ends)), key=padded) // self.world_size

    def place(self, number):
        """The epoch, and the place in it of a batch of this process among those of all."""
        return self.epoch, number * self.world_size + self.rank

    # A checkpoint within an epoch counts the batches that are done. Later on there may be another
    # number of processes, or other batches.

    def save(self, path):
        """Notes in a checkpoint what the batches follow from."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"plan": self._plan(), "world_size": self.world_size}, file)

    def load(self, path, end_of_epoch=False):
        """Reads what the batches of a checkpoint followed from."""
        with open(path, encoding="utf-8") as file:
            self._saved = json.load(file)

    def _plan(self):
        """What the batches of an epoch follow from."""
        limits = [self.batch_seconds, self.max_batch_utterances, self.num_buckets, self.seed]
        return [zlib.crc32(self.durations.tobytes()), *limits]

    def resumed(self, done):
        """Batches of this process that are done, when `done` were on each when it was saved.

        Where the batches are others now, or would end within a step, the epoch begins again.
        """
        if self._saved is None or done == 0:
            return done
        places = done * self._saved["world_size"]
        whole = places >= len(self._ends)
        now = len(self) if whole else places // self.world_size
        per_step = self.accumulation * self.world_size
        if self._saved["plan"] == self._plan() and (whole or places % per_step == 0):
            return now
        logger.warning(
            "the batches are others than those of the checkpoint, which was within an epoch: "
            "the epoch begins again"
        )
        return 0

    def ends_step(self, number):
        """Whether the optimizer steps after the batch of this number (from 0)."""
        return (number + 1) % self.accumulation == 0 or number + 1 == len(self)

    def weight(self, number):
        """What to multiply a batch's mean loss by, gradients being averaged over processes."""
        _, place = self.place(number)
        if place >= len(self._ends):
            return 0.0
        per_step = self.accumulation * self.world_size
        first = place // per_step * per_step
        step = range(first, min(first + per_step, len(self._ends)))
        return self.amount(place) * self.world_size / sum(map(self.amount, step))

    def amount(self, place):
        """What a batch counts for in its step: its utterances."""
        return int(self._ends[place] - self._begins[place])
