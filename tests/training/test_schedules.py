from functools import partial

import pytest
import torch
from speechbrain.nnet.schedulers import NoamScheduler

from summarymixing.errors import InputError
from summarymixing.training.schedules import Noam, WarmupCosine, WarmupExponential


def test_noam_is_speechbrains():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    theirs = NoamScheduler(lr_initial=5e-4, n_warmup_steps=25)
    ours = Noam(peak=5e-4, warmup_steps=25)
    for step in range(1, 200):
        theirs(optimizer)
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_cosine_warms_up_and_ends_at_zero():
    schedule = WarmupCosine(peak=2.0, warmup_steps=10)
    rates = [schedule(step, step / 100) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) < 2.0
    assert rates[-1] == 0
    assert all(later < earlier for earlier, later in zip(rates[10:], rates[11:]))


def test_exponential_loses_the_same_share_every_step_down_to_the_fraction():
    schedule = WarmupExponential(peak=8e-4, warmup_steps=25, total_steps=210, final_fraction=0.05)
    rates = [schedule(step, 0.0) for step in range(1, 301)]
    assert rates[:25] == pytest.approx([8e-4 * step / 25 for step in range(1, 26)])
    share = 0.05 ** (1 / 185)
    for step in range(25, 210):
        assert rates[step] == pytest.approx(rates[step - 1] * share, rel=1e-9)
    assert rates[209:] == pytest.approx([0.05 * 8e-4] * 91)


def test_bad_arguments_of_the_exponential():
    with pytest.raises(InputError, match="total_steps must be above warmup_steps=25, got 25"):
        WarmupExponential(1.0, 25, total_steps=25)
    with pytest.raises(InputError, match=r"final_fraction must be in \(0, 1\], got 0"):
        WarmupExponential(1.0, 25, total_steps=50, final_fraction=0)


@pytest.mark.parametrize(
    "schedule", [Noam, WarmupCosine, partial(WarmupExponential, total_steps=20)]
)
def test_bad_arguments(schedule):
    with pytest.raises(InputError, match="-1"):
        schedule(peak=-1, warmup_steps=10)
    with pytest.raises(InputError, match="got 0"):
        schedule(peak=1, warmup_steps=0)
