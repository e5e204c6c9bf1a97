"""One rule for samples: what passes, and what is said of what does not."""

import numpy as np
import pytest
import torch

from summarymixing.dataio.samples import as_samples, check_samples
from summarymixing.errors import InputError


def test_a_slight_overshoot_passes():
    for samples in (np.array([1.5, -3.0], np.float32), np.array([-100.0, 100.0]), np.zeros(0)):
        check_samples(samples, "a.wav")


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf, 1e30, -1e30, 101.0, -32768.0))
def test_the_first_wrong_sample_is_named(value):
    samples = np.zeros(9, np.float32)
    samples[4:] = value
    with pytest.raises(InputError) as error:
        check_samples(samples, "a.wav", first=100)
    assert str(error.value).startswith(f"a.wav: sample 104 is {np.float32(value):g}: samples must")
    assert "\n" not in str(error.value)


def test_integers_of_16_bits_are_scaled():
    for samples in (np.array([-32768, 16384], np.int16), torch.tensor([-1.0, 0.5]).double()):
        found = as_samples(samples, "stream 1")
        assert found.dtype == np.float32 and found.tolist() == [-1.0, 0.5]
    with pytest.raises(InputError, match="int16, got torch.int32"):
        as_samples(torch.zeros(3, dtype=torch.int32), "stream 1")
