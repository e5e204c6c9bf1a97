"""The predictor and the joiner."""

import pytest
import torch

from summarymixing.errors import InputError
from summarymixing.models.transducer import Joiner, Predictor


def test_predictor_goes_on_from_its_state_in_any_row():
    predictor = Predictor(11, 4, 6, num_layers=2).eval()
    tokens = torch.randint(1, 11, (3, 7))
    whole, _ = predictor(tokens)
    _, state = predictor(tokens[:, :4], predictor.initial_state(3))
    order = torch.tensor([2, 0])
    rest, _ = predictor(tokens[order, 4:], {name: tensor[order] for name, tensor in state.items()})
    torch.testing.assert_close(rest, whole[order, 4:])


def test_padding_after_the_tokens_does_not_reach_them():
    predictor = Predictor(11, 4, 6).eval()
    tokens = torch.tensor([[0, 5, 7, 0, 0], [0, 1, 2, 3, 4]])
    alone, _ = predictor(tokens[:1, :3])
    torch.testing.assert_close(predictor(tokens)[0][:1, :3], alone)


def test_blank_has_no_embedding_and_learns_none():
    predictor = Predictor(11, 4, 6)
    predictor(torch.zeros(1, 3, dtype=torch.long))[0].sum().backward()
    assert not predictor.embedding.weight[0].any()
    assert not predictor.embedding.weight.grad[0].any()


def test_joiner_of_all_pairs_is_that_of_each_pair():
    joiner = Joiner(5, 6, 11, 7)
    encoded, predicted = torch.randn(2, 4, 5), torch.randn(2, 3, 6)
    every = joiner(encoded.unsqueeze(2), predicted.unsqueeze(1))
    for time in range(4):
        for label in range(3):
            one = joiner(encoded[:, time], predicted[:, label])
            torch.testing.assert_close(every[:, time, label], one)


def test_sizes_are_checked():
    with pytest.raises(InputError, match="hidden_size must be a positive integer, got 0"):
        Predictor(11, 4, hidden_size=0)
    with pytest.raises(InputError, match="joint_dim must be a positive integer, got 2.5"):
        Joiner(5, 6, 11, joint_dim=2.5)
    with pytest.raises(InputError, match="joint_dim must be a positive integer, got True"):
        Joiner(5, 6, 11, joint_dim=True)
