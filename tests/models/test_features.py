"""Log-mel features: clipping."""

import pytest
import torch

from summarymixing.errors import InputError
from summarymixing.models.features import LogMel


def test_without_clipping_a_loud_end_does_not_reach_back():
    wav = torch.cat([torch.randn(8000) * 1e-5, torch.randn(8000)])
    length = torch.tensor([8000])
    for top_db in (80.0, 20.0, None):
        features = LogMel(top_db=top_db)
        whole = features(wav[None], 2 * length)[0][:, :40]
        quiet = features(wav[None, :8000], length)[0][:, :40]
        difference = (whole - quiet).abs().max()
        assert difference < 1e-4 if top_db is None else difference > 1


def test_clipping_is_speechbrains_by_default():
    wav = torch.randn(1, 8000) * torch.logspace(-6, 0, 8000)
    features = LogMel()
    expected = features.fbank(wav)
    torch.testing.assert_close(features(wav, torch.tensor([8000]))[0], expected)
    assert (expected.max() - expected.min()).item() == pytest.approx(80, abs=1e-3)


@pytest.mark.parametrize("top_db", (0, -1.0))
def test_top_db_is_positive(top_db):
    with pytest.raises(InputError, match="top_db"):
        LogMel(top_db=top_db)
