"""Dynamic Chunk Training (arXiv 2012.05481): chunk sizes drawn for each training batch."""

from speechbrain.utils.dynamic_chunk_training import (
    DynChunkTrainConfig,
    DynChunkTrainConfigRandomSampler,
)

from summarymixing.errors import InputError, check_integer


class RandomChunks(DynChunkTrainConfigRandomSampler):
    """SpeechBrain's sampler of chunk sizes, made from numbers and checked.

    Called with a stage, it returns a `DynChunkTrainConfig`, or None for offline encoding. In
    training it draws from PyTorch's random state. The defaults are the published ones.

    Arguments
    ---------
    chunkwise_prob : float
        Probability that a training batch is encoded chunk by chunk.
    chunk_size_min, chunk_size_max : int
        Frames of the encoder; both ends are drawn, too.
    limited_left_context_prob : float
        Probability that a chunk-wise batch sees a limited number of chunks to the left.
    left_context_chunks_min, left_context_chunks_max : int
        In chunks, both ends included.
    valid_chunk_size, test_chunk_size : int, optional
        In validation and in tests; left out: offline.
    valid_left_context, test_left_context : int, optional
        In chunks; left out: unlimited.

    Raises
    ------
    InputError
        For a probability outside [0, 1], a size that is not a positive integer, a minimum above
        its maximum, or a left context without a chunk size.

    Example
    -------
    >>> from speechbrain import Stage
    >>> chunks = RandomChunks(chunkwise_prob=1.0, chunk_size_max=8, test_chunk_size=16)
    >>> chunks(Stage.TRAIN).chunk_size, chunks(Stage.VALID)
    (8, None)
    >>> chunks(Stage.TEST)
    DynChunkTrainConfig(chunk_size=16, left_context_size=None)
    """

    def __init__(
        self,
        chunkwise_prob=0.6,
        chunk_size_min=8,
        chunk_size_max=32,
        limited_left_context_prob=0.75,
        left_context_chunks_min=2,
        left_context_chunks_max=32,
        valid_chunk_size=None,
        valid_left_context=None,
        test_chunk_size=None,
        test_left_context=None,
    ):
        _check_probability("chunkwise_prob", chunkwise_prob)
        _check_probability("limited_left_context_prob", limited_left_context_prob)
        _check_range("chunk_size", chunk_size_min, chunk_size_max, 1)
        _check_range("left_context_chunks", left_context_chunks_min, left_context_chunks_max, 0)
        super().__init__(
            chunkwise_prob,
            chunk_size_min,
            chunk_size_max,
            limited_left_context_prob,
            left_context_chunks_min,
            left_context_chunks_max,
            test_config=_config("test", test_chunk_size, test_left_context),
            valid_config=_config("valid", valid_chunk_size, valid_left_context),
        )


def _config(stage, chunk_size, left_context):
    if left_context is not None:
        check_integer(f"{stage}_left_context", left_context, 0)
    if chunk_size is None:
        if left_context is not None:
            raise InputError(
                f"{stage}_left_context={left_context} counts chunks: give {stage}_chunk_size, too"
            )
        return None
    check_integer(f"{stage}_chunk_size", chunk_size, 1)
    return DynChunkTrainConfig(chunk_size, left_context)


def _check_probability(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InputError(f"{name} must be in [0, 1], got {value!r}")


def _check_range(name, low, high, least):
    check_integer(f"{name}_min", low, least)
    check_integer(f"{name}_max", high, least)
    if low > high:
        raise InputError(f"{name}_min={low} must not be above {name}_max={high}")
