"""Networks over tokens one token at a time, for many hypotheses of many utterances at once.

`DecoderSteps`, `TransformerLMSteps` and `RNNLMSteps` compute what SpeechBrain's `TransformerASR`,
`TransformerLM` and `RNNLM` compute for a whole prefix, from its last token and a state:

    state = steps.start(...)
    output, state = steps.step(tokens, state)    # (hypotheses,) → (hypotheses, width)
    state = reordered(state, index)              # those that go on, in their new order

There are as many hypotheses for each utterance, and they stand together. A state is made of tensors
with the hypotheses first and of objects with a method `reorder`; a step may write into the state
that it is given. The networks have to be in eval mode: dropout is applied in training mode, as far
as it is in modules that are called as a whole, and nothing here changes the mode.
"""

import torch
from speechbrain.lobes.models.transformer.Transformer import PositionalEncoding
from speechbrain.nnet.attention import MultiheadAttention
from torch.nn import functional as F

from summarymixing.errors import InputError


def reordered(state, index):
    """The state of the hypotheses `index`, which may be any of one utterance or another's.

    Arguments
    ---------
    state : torch.Tensor, dict, list, tuple, None, or an object with a method `reorder`
        Tensors have the hypotheses first; objects are changed in place.
    index : torch.Tensor
        (hypotheses,), int: where each was. Those of an utterance stand together, and come from
        hypotheses of that utterance; of utterances some may be left out.

    Returns
    -------
    As `state`.

    Example
    -------
    >>> reordered({"sums": torch.tensor([1, 2, 3, 4]), "step": 7}, torch.tensor([3, 2]))
    {'sums': tensor([4, 3]), 'step': 7}
    """
    if isinstance(state, torch.Tensor):
        return state.index_select(0, index)
    if isinstance(state, dict):
        return {key: reordered(value, index) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(reordered(value, index) for value in state)
    if hasattr(state, "reorder"):
        state.reorder(index)
    return state


class PerUtterance:
    """Tensors with the utterances first, which all hypotheses of an utterance share.

    Example
    -------
    >>> tensors = PerUtterance(2, lengths=torch.tensor([5, 7, 9]))
    >>> tensors.reorder(torch.tensor([0, 0, 5, 4]))
    >>> tensors["lengths"]
    tensor([5, 9])
    """

    def __init__(self, beam_size, **tensors):
        self.beam_size = beam_size
        self.tensors = tensors

    def __getitem__(self, name):
        return self.tensors[name]

    def reorder(self, index):
        rows = index[:: self.beam_size] // self.beam_size
        if len(rows) < len(next(iter(self.tensors.values()))):
            self.tensors = {name: tensor[rows] for name, tensor in self.tensors.items()}


class AttentionCache:
    """Keys and values of the tokens of all hypotheses, for the self-attention of all layers.

    The hypotheses of an utterance are a tree: those of a beam differ in their last few tokens, and
    have the others in common. The cache has every token of the tree once, and for each hypothesis a
    mask of the tokens that it consists of: then attention is a product of matrices, not of a matrix
    and a vector for each hypothesis; reordering hypotheses is reordering masks; and time and memory
    of a step depend on what the hypotheses do not share, and hardly on how long they are. Tokens of
    hypotheses that were given up go when room is needed.

    Memory: 2 × layers × width numbers for a token of the tree, which has beam_size × steps tokens
    at most (nothing shared), and twice as much for a moment when room is made.

    Arguments
    ---------
    like : torch.Tensor
        Whose type and device it has.
    layers, width, heads : int
        Of the attention.
    batch, beam_size : int
        Utterances, and hypotheses of each.
    max_steps : int
        Tokens at most of a hypothesis.

    Example
    -------
    >>> cache = AttentionCache(torch.zeros(()), 1, 4, 2, batch=1, beam_size=2, max_steps=9)
    >>> q = k = v = torch.rand(2, 4)                  # two hypotheses, their first tokens
    >>> cache.add(torch.tensor([True, True]))
    >>> torch.allclose(cache.attend(0, q, k, v), v)   # which see nothing but themselves
    True
    >>> cache.reorder(torch.tensor([1, 1]))           # both go on from the second
    >>> cache.add(torch.tensor([True, True]))
    >>> cache.attend(0, q, k, v).shape
    torch.Size([2, 4])
    """

    def __init__(self, like, layers, width, heads, batch, beam_size, max_steps):
        self.heads, self.beam_size = heads, beam_size
        self.left = beam_size * max_steps  # tokens that may yet come
        self.nodes = 0
        self.memory = like.new_empty(layers, 2, batch, 0, width)
        self.own = torch.zeros(batch, beam_size, 0, dtype=torch.bool, device=like.device)
        self.mask = None

    def add(self, visible):
        """Room for one more token of every hypothesis; `visible` (hypotheses,): not padding."""
        beam, first = self.beam_size, self.nodes
        if first + beam > self.own.shape[2]:
            first = self._make_room()
        self.nodes = first + beam
        self.left -= beam
        new = torch.eye(beam, dtype=torch.bool, device=visible.device)
        self.own[:, :, first : self.nodes] = new & visible.view(-1, beam, 1)
        own = self.own[:, None, :, : self.nodes]
        self.mask = self.memory.new_zeros(own.shape).masked_fill_(~own, -torch.inf)

    def attend(self, layer, query, key, value):
        """(hypotheses, width) each, of the tokens just added → (hypotheses, width)."""
        new = slice(self.nodes - self.beam_size, self.nodes)
        keys, values = (self.memory[layer, i, :, : self.nodes] for i in range(2))
        keys[:, new] = key.view(-1, self.beam_size, key.shape[1])
        values[:, new] = value.view(-1, self.beam_size, value.shape[1])
        return _attend(query, keys, values, self.heads, self.beam_size, self.mask)

    def reorder(self, index):
        rows = index[:: self.beam_size] // self.beam_size
        self.own = self.own.flatten(0, 1)[index].unflatten(0, (-1, self.beam_size))
        if len(rows) < self.memory.shape[2]:
            self.memory = self.memory[:, :, rows]

    def _make_room(self):
        """Drops what is no hypothesis' token and doubles the rest; how many are left."""
        own = self.own[:, :, : self.nodes]
        alive = own.any(1)
        kept = int(alive.sum(1).max()) if self.nodes else 0
        order = alive.int().argsort(dim=1, descending=True, stable=True)[:, :kept]
        room = kept + min(self.left, max(kept, 8 * self.beam_size))
        layers, two, batch, _, width = self.memory.shape
        memory = self.memory.new_empty(layers, two, batch, room, width)
        rows = torch.arange(batch, device=order.device).unsqueeze(1)
        memory[:, :, :, :kept] = self.memory[:, :, rows, order]
        self.memory = memory
        self.own = own.new_zeros(batch, self.beam_size, room)
        self.own[:, :, :kept] = own.gather(2, order.unsqueeze(1).expand(-1, self.beam_size, -1))
        return kept


class DecoderSteps:
    """SpeechBrain's Transformer decoder over encoder output, token by token.

    Cross-attention's keys and values are computed once for an utterance. The mixer of a layer is
    SpeechBrain's attention, or anything with `step(x, state) → (output, state)` whose state is
    tensors with the hypotheses first (None at the first token), as `CausalSummaryMixing`.

    Arguments
    ---------
    model : speechbrain.lobes.models.transformer.TransformerASR.TransformerASR
        In evaluation mode; or a subclass.

    Example
    -------
    >>> from summarymixing.models.transformer_asr import TransformerASR
    >>> model = TransformerASR(9, 8, d_model=8, nhead=2, num_encoder_layers=1,
    ...     num_decoder_layers=2, d_ffn=16, csgu_linear_units=16).eval()
    >>> encoded, prefix = torch.rand(1, 5, 8), torch.tensor([[1, 4, 4, 7]])
    >>> whole, _ = model.decode(prefix, encoded)
    >>> steps = DecoderSteps(model)
    >>> state = steps.start(encoded, torch.tensor([5]), beam_size=1, max_steps=4)
    >>> for i, token in enumerate(prefix[0]):
    ...     one, state = steps.step(token.view(1), state)
    ...     assert torch.allclose(one, whole[:, i], atol=1e-5)
    """

    def __init__(self, model):
        if not hasattr(model, "decoder"):
            raise InputError("the model has no decoder layers: num_decoder_layers is 0")
        self.model = model
        self.layers = model.decoder.layers
        for layer in self.layers:
            if not isinstance(layer.multihead_attn, MultiheadAttention) or not (
                _is_attention(layer.self_attn) or hasattr(layer.self_attn, "step")
            ):
                raise InputError(
                    "a decoder layer's mixer must be SpeechBrain's MultiheadAttention or have a "
                    f"method step, got {type(layer.self_attn).__name__}"
                )
        self.embedding = model.custom_tgt_module
        decoders = getattr(model, "positional_encoding_decoder", None)
        self.positions = decoders or model.positional_encoding

    @torch.no_grad()
    def start(self, encoded, lengths, beam_size, max_steps):
        """Before the first token.

        Arguments
        ---------
        encoded : torch.Tensor
            (batch, time, d_model), finite.
        lengths : torch.Tensor
            (batch,), int, frames.
        beam_size, max_steps : int
            Hypotheses of each utterance, and tokens of each at most.

        Returns
        -------
        dict
        """
        batch, time, width = encoded.shape
        attentions = sum(_is_attention(layer.self_attn) for layer in self.layers)
        heads = self.layers[0].multihead_attn.att.num_heads
        padding = torch.arange(time, device=encoded.device) >= lengths.unsqueeze(1)
        mask = encoded.new_zeros(batch, 1, 1, time).masked_fill_(padding[:, None, None], -torch.inf)
        tensors = {"mask": mask}
        for i, layer in enumerate(self.layers):
            _, *maps = _projections(layer.multihead_attn.att)
            tensors[f"keys{i}"], tensors[f"values{i}"] = (F.linear(encoded, *one) for one in maps)
        return {
            "positions": iter(_table(self.positions, encoded, max_steps)),
            "cache": AttentionCache(encoded, attentions, width, heads, batch, beam_size, max_steps),
            "mixers": [None] * len(self.layers),
            "encoded": PerUtterance(beam_size, **tensors),
        }

    @torch.no_grad()
    def step(self, tokens, state):
        """The next tokens: (hypotheses,) → (hypotheses, d_model), and the state after them."""
        x = self.embedding(tokens.unsqueeze(1)).squeeze(1) + next(state["positions"])
        encoded, cache, mixers = state["encoded"], state["cache"], list(state["mixers"])
        cache.add(torch.ones_like(tokens, dtype=torch.bool))  # as in SpeechBrain: no padding here
        attentions = 0
        for i, layer in enumerate(self.layers):
            before = layer.normalize_before
            mixed = layer.norm1(x) if before else x
            if _is_attention(layer.self_attn):
                mixed = _self_attention(layer.self_attn.att, mixed, cache, attentions)
                attentions += 1
            else:
                mixed, mixers[i] = layer.self_attn.step(mixed, mixers[i])
            x = x + mixed if before else layer.norm1(x + mixed)
            att = layer.multihead_attn.att
            query = F.linear(layer.norm2(x) if before else x, *_projections(att)[0])
            mixed = att.out_proj(
                _attend(
                    query,
                    encoded[f"keys{i}"],
                    encoded[f"values{i}"],
                    att.num_heads,
                    encoded.beam_size,
                    encoded["mask"],
                )
            )
            x = x + mixed if before else layer.norm2(x + mixed)
            mixed = layer.pos_ffn.ffn(layer.norm3(x) if before else x)
            x = x + mixed if before else layer.norm3(x + mixed)
        return self.model.decoder.norm(x), {**state, "mixers": mixers}


class TransformerLMSteps:
    """SpeechBrain's Transformer language model, token by token.

    As there, token 0 is padding, which the tokens after it do not see.

    Arguments
    ---------
    lm : speechbrain.lobes.models.transformer.TransformerLM.TransformerLM
        In evaluation mode, with encoder layers only, its default.

    Example
    -------
    >>> from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
    >>> lm = TransformerLM(9, d_model=8, nhead=2, num_encoder_layers=2, d_ffn=16).eval()
    >>> text = torch.tensor([[1, 4, 0, 7]])
    >>> steps = TransformerLMSteps(lm)
    >>> state = steps.start(batch=1, beam_size=1, max_steps=4)
    >>> for i, token in enumerate(text[0]):
    ...     logits, state = steps.step(token.view(1), state)
    ...     assert torch.allclose(logits, lm(text)[:, i], atol=1e-5)
    """

    def __init__(self, lm):
        layers = lm.encoder.layers if getattr(lm, "encoder", None) is not None else []
        if (
            lm.num_decoder_layers
            or not layers
            or not all(_is_attention(x.self_att) for x in layers)
        ):
            raise InputError(
                "the language model must be a TransformerLM with encoder layers only and "
                f"attention_type regularMHA, got attention_type {lm.attention_type}, "
                f"num_encoder_layers {len(layers)}, num_decoder_layers {lm.num_decoder_layers}"
            )
        self.lm, self.layers = lm, layers

    @torch.no_grad()
    def start(self, batch, beam_size, max_steps):
        """Before the first token, of `beam_size` hypotheses of each of `batch` utterances."""
        att = self.layers[0].self_att.att
        like = att.out_proj.weight
        cache = AttentionCache(
            like, len(self.layers), att.embed_dim, att.num_heads, batch, beam_size, max_steps
        )
        positions = _table(self.lm.positional_encoding, like.view(1, *like.shape), max_steps)
        return {"positions": iter(positions), "cache": cache}

    @torch.no_grad()
    def step(self, tokens, state):
        """The next tokens: (hypotheses,) → logits (hypotheses, vocabulary), and the state."""
        x, cache = self.lm.custom_src_module(tokens.unsqueeze(1)).squeeze(1), state["cache"]
        if self.lm.embedding_proj is not None:
            x = self.lm.embedding_proj(x)
        x = x + next(state["positions"])
        cache.add(tokens != 0)
        for i, layer in enumerate(self.layers):
            before = layer.normalize_before
            mixed = _self_attention(layer.self_att.att, layer.norm1(x) if before else x, cache, i)
            x = x + mixed if before else layer.norm1(x + mixed)
            mixed = layer.pos_ffn.ffn(layer.norm2(x) if before else x)
            x = x + mixed if before else layer.norm2(x + mixed)
        return self.lm.output_proj(self.lm.encoder.norm(x)), state


class RNNLMSteps:
    """SpeechBrain's recurrent language model, whose own state has the layers first.

    Arguments
    ---------
    lm : speechbrain.lobes.models.RNNLM.RNNLM
        In evaluation mode, with return_hidden: True.

    Example
    -------
    >>> from speechbrain.lobes.models.RNNLM import RNNLM
    >>> lm = RNNLM(9, 4, rnn_neurons=8, dnn_neurons=8, return_hidden=True).eval()
    >>> steps = RNNLMSteps(lm)
    >>> logits, state = steps.step(torch.tensor([1, 5]), steps.start(batch=2, beam_size=1))
    >>> logits.shape, state["hidden"][0].shape    # two layers of 8
    (torch.Size([2, 9]), torch.Size([2, 2, 8]))
    """

    def __init__(self, lm):
        if not getattr(lm, "return_hidden", False):
            raise InputError("the recurrent language model must have return_hidden: True")
        self.lm = lm

    @torch.no_grad()
    def start(self, batch, beam_size, max_steps=None):
        return {"hidden": None}

    @torch.no_grad()
    def step(self, tokens, state):
        """The next tokens: (hypotheses,) → logits (hypotheses, vocabulary), and the state."""
        logits, hidden = self.lm(tokens, hx=_swapped(state["hidden"]))
        return logits, {"hidden": _swapped(hidden)}


def _swapped(hidden):
    """Layers first to hypotheses first, or back."""
    if isinstance(hidden, torch.Tensor):
        return hidden.transpose(0, 1).contiguous()
    return hidden and tuple(_swapped(one) for one in hidden)


def _is_attention(mixer):
    return isinstance(mixer, MultiheadAttention)


def _projections(att):
    """(weight, bias) of queries, keys and values of a torch.nn.MultiheadAttention."""
    weights = (att.q_proj_weight, att.k_proj_weight, att.v_proj_weight)
    if att.in_proj_weight is not None:
        weights = att.in_proj_weight.chunk(3)
    return list(
        zip(weights, (None,) * 3 if att.in_proj_bias is None else att.in_proj_bias.chunk(3))
    )


def _self_attention(att, x, cache, layer):
    q, k, v = F.linear(x, att.in_proj_weight, att.in_proj_bias).chunk(3, dim=1)
    return att.out_proj(cache.attend(layer, q, k, v))


def _attend(query, keys, values, heads, beam_size, mask):
    """(hypotheses, width) over (batch, time, width) each; mask (batch, 1, 1 or beam, time)."""
    hypotheses, width = query.shape

    def split(x):
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    query = split(query.view(-1, beam_size, width))
    mask = mask.expand(-1, heads, beam_size, -1)
    found = F.scaled_dot_product_attention(query, split(keys), split(values), attn_mask=mask)
    return found.transpose(1, 2).reshape(hypotheses, width)


def _table(positions, like, steps):
    """The first `steps` positional encodings: (steps, width), as `like` (…, …, width)."""
    if getattr(positions, "max_len", steps) < steps:
        # The sinusoids go on; only SpeechBrain's table of them ends.
        positions = PositionalEncoding(like.shape[2], steps)
    return positions(like[:1, :1].expand(-1, steps, -1))[0].to(like)
