import pytest
import torch
from speechbrain.nnet.schedulers import NoamScheduler

from summarymixing.errors import InputError
from summarymixing.training.schedules import Noam, WarmupCosine


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


@pytest.mark.parametrize("schedule", [Noam, WarmupCosine])
def test_bad_arguments(schedule):
    with pytest.raises(InputError, match="-1"):
        schedule(peak=-1, warmup_steps=10)
    with pytest.raises(InputError, match="got 0"):
        schedule(peak=1, warmup_steps=0)
