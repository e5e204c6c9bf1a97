"""Chunk sizes for training and testing."""

import pytest
import torch
from speechbrain import Stage

from summarymixing.errors import InputError
from summarymixing.training.chunks import RandomChunks


def test_draws_are_the_published_ones():
    torch.manual_seed(0)
    chunks = RandomChunks()
    drawn = [chunks(Stage.TRAIN) for _ in range(4000)]
    chunkwise = [one for one in drawn if one is not None]
    assert len(chunkwise) / len(drawn) == pytest.approx(0.6, abs=0.03)
    assert {one.chunk_size for one in chunkwise} == set(range(8, 33))
    limited = [one for one in chunkwise if one.left_context_size is not None]
    assert len(limited) / len(chunkwise) == pytest.approx(0.75, abs=0.03)
    assert {one.left_context_size for one in limited} == set(range(2, 33))


def test_validation_and_tests_have_chunks_of_their_own():
    chunks = RandomChunks(valid_chunk_size=8, test_chunk_size=16, test_left_context=0)
    valid, test = chunks(Stage.VALID), chunks(Stage.TEST)
    assert (valid.chunk_size, valid.left_context_size) == (8, None)
    assert (test.chunk_size, test.left_context_size) == (16, 0)
    assert RandomChunks()(Stage.TEST) is None


@pytest.mark.parametrize(
    "given, message",
    (
        ({"chunk_size_min": 0}, "chunk_size_min must be a positive integer, got 0"),
        ({"chunk_size_max": -8}, "chunk_size_max must be a positive integer, got -8"),
        ({"chunk_size_max": 8.5}, "chunk_size_max must be a positive integer, got 8.5"),
        ({"chunk_size_min": 33}, "chunk_size_min=33 must not be above chunk_size_max=32"),
        ({"left_context_chunks_min": -1}, "left_context_chunks_min .* at least 0, got -1"),
        ({"left_context_chunks_max": 1}, "left_context_chunks_min=2 must not be above"),
        ({"chunkwise_prob": 1.5}, r"chunkwise_prob must be in \[0, 1\], got 1.5"),
        ({"limited_left_context_prob": -0.1}, r"limited_left_context_prob must be in \[0, 1\]"),
        ({"chunkwise_prob": "often"}, "chunkwise_prob must be in .* got 'often'"),
        ({"test_chunk_size": 0}, "test_chunk_size must be a positive integer, got 0"),
        ({"test_chunk_size": True}, "test_chunk_size must be a positive integer, got True"),
        ({"valid_chunk_size": -1}, "valid_chunk_size must be a positive integer, got -1"),
        ({"test_chunk_size": 8, "test_left_context": -1}, "test_left_context .* got -1"),
        ({"test_left_context": 2}, "test_left_context=2 counts chunks: give test_chunk_size"),
    ),
)
def test_bad_values(given, message):
    with pytest.raises(InputError, match=message):
        RandomChunks(**given)
