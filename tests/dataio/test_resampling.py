"""Resampling in numpy against torchaudio's."""

import numpy as np
import pytest
import torch
import torchaudio

from summarymixing.dataio import resampling


@pytest.mark.parametrize("old", (8000, 11025, 22050, 44100, 48000, 12000))
@pytest.mark.parametrize("samples", (1, 441, 30011))
def test_it_is_torchaudios(old, samples):
    x = torch.randn(samples) * 0.1
    # In float64: in float32, its filters for 11025 Hz have errors of some 1e-5.
    expected = torchaudio.functional.resample(x.double(), old, 16000)
    found = resampling.resample(x.numpy(), old, 16000)
    assert found.dtype == np.float32
    assert len(found) == -(-samples * 16000 // old)
    # torchaudio rounds its length in float32, and may have one more or less.
    length = min(len(found), len(expected))
    np.testing.assert_allclose(found[:length], expected[:length], rtol=0, atol=1e-6)


def test_the_reach_is_what_a_sample_depends_on():
    x = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    whole = resampling.resample(x, 3, 2)
    other = x.copy()
    other[: 1500 - resampling.reach(3, 2)] = 0
    assert np.array_equal(resampling.resample(other, 3, 2)[1000:], whole[1000:])
    other[1500 - resampling.reach(3, 2) : 1500] = 0
    assert not np.array_equal(resampling.resample(other, 3, 2)[1000:], whole[1000:])
