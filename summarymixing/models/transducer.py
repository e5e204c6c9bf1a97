"""The parts of a transducer beside its encoder: the predictor and the joiner."""

from torch import nn

from summarymixing.errors import check_integer
from summarymixing.ops.dropout import Dropout


class Predictor(nn.Module):
    """An embedding and an LSTM over the tokens so far.

    The blank, token 0, begins every sequence: its embedding is zero and stays so. Tokens that end
    or begin a sentence have no part in a transducer.

    Arguments
    ---------
    vocabulary : int
        Tokens, the blank included.
    embedding_dim : int
    hidden_size : int
        Width of the LSTM and of the output.
    num_layers : int
    dropout : float
        Of the embedding and of the output.

    Example
    -------
    >>> import torch
    >>> predictor = Predictor(vocabulary=30, embedding_dim=8, hidden_size=16)
    >>> predicted, _ = predictor(torch.tensor([[0, 7, 4]]))
    >>> predicted.shape
    torch.Size([1, 3, 16])
    >>> state = predictor.initial_state(batch_size=1)
    >>> for token in (0, 7, 4):
    ...     last, state = predictor(torch.tensor([[token]]), state)
    >>> torch.allclose(last, predicted[:, -1:], atol=1e-6)
    True
    """

    def __init__(self, vocabulary, embedding_dim=512, hidden_size=512, num_layers=1, dropout=0.0):
        super().__init__()
        _check(
            vocabulary=vocabulary,
            embedding_dim=embedding_dim,
            hidden_size=hidden_size,
            num_layers=num_layers,
        )
        self.embedding = nn.Embedding(vocabulary, embedding_dim, padding_idx=0)
        self.lstm = nn.LSTM(embedding_dim, hidden_size, num_layers, batch_first=True)
        self.dropout = Dropout(dropout)

    def initial_state(self, batch_size):
        """The state before any token, all zeros: a dict of (batch, num_layers, hidden_size)."""
        weight = self.lstm.weight_hh_l0
        zeros = weight.new_zeros(batch_size, self.lstm.num_layers, self.lstm.hidden_size)
        return {"hidden": zeros, "cell": zeros.clone()}

    def forward(self, tokens, state=None):
        """Output after each token, and the state after the last.

        Arguments
        ---------
        tokens : torch.Tensor
            (batch, tokens), int64; a sequence begins with the blank.
        state : dict, optional
            The state after the tokens before these; none: these are the first.

        Returns
        -------
        predicted : torch.Tensor
            (batch, tokens, hidden_size).
        state : dict
            "hidden" and "cell", (batch, num_layers, hidden_size).
        """
        if state is not None:
            # The LSTM has the layers first, also with batch_first.
            state = tuple(state[name].transpose(0, 1).contiguous() for name in ("hidden", "cell"))
        predicted, (hidden, cell) = self.lstm(self.dropout(self.embedding(tokens)), state)
        state = {"hidden": hidden.transpose(0, 1), "cell": cell.transpose(0, 1)}
        return self.dropout(predicted), state


class Joiner(nn.Module):
    """Scores of the next token, or blank, from an encoder frame and the predictor's output.

    Arguments
    ---------
    encoder_dim, predictor_dim : int
        Widths of the two inputs.
    vocabulary : int
        Tokens, the blank included.
    joint_dim : int
        Width in which the inputs are added.
    activation : type
        Class of the nonlinearity on the sum.

    Example
    -------
    >>> import torch
    >>> joiner = Joiner(encoder_dim=24, predictor_dim=16, vocabulary=30, joint_dim=32)
    >>> encoded, predicted = torch.rand(2, 50, 24), torch.rand(2, 8, 16)
    >>> joiner(encoded.unsqueeze(2), predicted.unsqueeze(1)).shape  # all pairs, for the loss
    torch.Size([2, 50, 8, 30])
    >>> joiner(encoded[:, 0], predicted[:, 0]).shape  # one pair each, in a search
    torch.Size([2, 30])
    """

    def __init__(self, encoder_dim, predictor_dim, vocabulary, joint_dim=640, activation=nn.GELU):
        super().__init__()
        _check(
            encoder_dim=encoder_dim,
            predictor_dim=predictor_dim,
            vocabulary=vocabulary,
            joint_dim=joint_dim,
        )
        self.encoder_proj = nn.Linear(encoder_dim, joint_dim)
        self.predictor_proj = nn.Linear(predictor_dim, joint_dim, bias=False)
        self.activation = activation()
        self.output = nn.Linear(joint_dim, vocabulary)

    def forward(self, encoded, predicted):
        """Logits (..., vocabulary) of (..., encoder_dim) and (..., predictor_dim), broadcast."""
        return self.join(self.encoder_proj(encoded), predicted)

    def join(self, projected, predicted):
        """As `forward`, of frames that `encoder_proj` was applied to: once, for a search."""
        return self.output(self.activation(projected + self.predictor_proj(predicted)))


def _check(**sizes):
    for name, size in sizes.items():
        check_integer(name, size)
