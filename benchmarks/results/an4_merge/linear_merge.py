from summarymixing import SummaryMixing


class Cell(SummaryMixing):
    """The full cell; as a mixer of one's own it gets Branchformer's linear merge."""

    def __init__(self, d_model, dropout):
        super().__init__(d_model, 1, [d_model], d_model, [d_model], d_model, global_dropout=dropout)
