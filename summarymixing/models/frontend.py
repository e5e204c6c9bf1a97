"""The convolutional front end: log-mel frames in, a quarter of them out."""

import torch
from speechbrain.lobes.models import convolution
from speechbrain.nnet import CNN
from torch.nn import functional as F

from summarymixing.errors import InputError
from summarymixing.ops.dropout import replace_dropout
from summarymixing.ops.padding import absolute_lengths, reflect


class Conv2d(CNN.Conv2d):
    """SpeechBrain's convolution over time and features with time first, and "same" padding only.

    Its frames are channels last as they are; the host makes time the last dimension, for which it
    copies all before and after.
    """

    def forward(self, x):
        """(batch, time, features[, channels]) → (batch, time, features, channels)."""
        if self.unsqueeze:
            x = x.unsqueeze(-1)
        features, time = (
            CNN.get_padding_elem(self.in_channels, *of_a_dimension)
            for of_a_dimension in zip(self.stride, self.kernel_size, self.dilation)
        )
        x = F.pad(x.permute(0, 3, 1, 2), (*features, *time), mode="reflect")
        x = F.conv2d(
            x, self.conv.weight.transpose(2, 3), self.conv.bias, self.stride[::-1],
            dilation=self.dilation[::-1],
        )  # fmt: skip
        return x.permute(0, 2, 3, 1)


class ConvolutionFrontEnd(convolution.ConvolutionFrontEnd):
    """SpeechBrain's front end with lengths: independent of padding, for one frame or more.

    Takes the arguments of SpeechBrain's class and has its parameters under the same names. With
    lengths, it reflects at each utterance's own end instead of the batch's; for an utterance
    alone the two are the same.

    Example
    -------
    >>> cnn = ConvolutionFrontEnd((None, None, 80), num_blocks=2, num_layers_per_block=1,
    ...     out_channels=(64, 32), kernel_sizes=(3, 3), strides=(2, 2), residuals=(False, False))
    >>> frames, lengths = cnn(torch.rand(2, 101, 80), torch.tensor([101, 1]))
    >>> frames.shape, lengths.tolist()
    (torch.Size([2, 26, 20, 32]), [26, 1])
    """

    def __init__(self, input_shape, *args, **kwargs):
        super().__init__(input_shape, *args, **{"conv_module": Conv2d, **kwargs})
        replace_dropout(self)
        for block in self.values():
            properties = block.filter_properties[0]
            if len(block.filter_properties) != 1 or block.reduce_conv is not None:
                # A second convolution would need the lengths of its own.
                raise InputError("num_layers_per_block must be 1 and residuals False")
            # For the rest, the host's "same" padding gives a frame more or less than it says.
            if properties.stride > 1 and properties.dilation > 1:
                raise InputError(
                    f"dilation must be 1 where the stride is above 1, got {properties.dilation}"
                )
            padding = block.convs["conv_0"].padding
            if padding != "same":
                raise InputError(f"padding must be 'same', got {padding!r}")

    def frames(self, frames):
        """Output frames for a number of input frames (an integer or a tensor of them)."""
        for block in self.values():
            frames = (frames - 1) // block.filter_properties[0].stride + 1
        return frames

    def forward(self, x, lengths=None):
        """Without lengths, returns frames alone, as SpeechBrain's front end does.

        Arguments
        ---------
        x : torch.Tensor
            (batch, time, features).
        lengths : torch.Tensor, optional
            (batch,): frames if integers, fractions of `time` otherwise.

        Returns
        -------
        frames : torch.Tensor
            (batch, time / strides, features / strides, channels).
        lengths : torch.Tensor
            (batch,), int64, in output frames.
        """
        batch, time = x.shape[:2]
        if lengths is None:
            valid = torch.full((batch,), time, device=x.device)
        else:
            valid = absolute_lengths(lengths, time)
        for block in self.values():
            properties = block.filter_properties[0]
            width = (properties.window_size - 1) // 2 * properties.dilation
            out_time = (time - 1) // properties.stride + 1
            x = block(reflect(x, valid, width))[:, :out_time]
            valid = (valid - 1) // properties.stride + 1
            time = out_time
        return x if lengths is None else (x, valid)
