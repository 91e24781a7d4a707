"""Sinusoidal initialisation of the colour and position embeddings.

With random embeddings, as in the paper, a model must learn from images which colours are similar and which pixels are
neighbours. Here embeddings start as sines and cosines: of the colour along random directions ("Fourier Features Let
Networks Learn High Frequency Functions", Tancik et al., 2020), and of the row and column (the 2-D form of the positions
of "Attention Is All You Need", 2017). Inner products then fall with distance, and "one row up" is the same rotation for
all pixels. Training and file formats do not change. It lowers the loss by about 1.2 nats per pixel after 1,200,000
pixels, see docs/log.md.

Axes: T pixels in raster order, V colours, K frequencies, C channels.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from imagegpt.model.modeling import ImageGPTForCausalImageModeling

_MIN_WAVELENGTH = 2.5  # pixels; below 2 it would alias
_MAX_WAVELENGTH = 2.5  # times the longer edge of the image
_COLOR_FREQUENCIES = (0.5, 1.0, 2.0, 4.0, 8.0)  # radians per unit of a channel in [-1, 1]
_RMS = 1.0  # of the embeddings; see docs/log.md


@torch.no_grad()
def sinusoidal_init_(
    model: ImageGPTForCausalImageModeling, clusters: Float[Tensor, "v 3"], size: tuple[int, int]
) -> None:
    """Overwrite a new model's embeddings of colours and positions, but not the start token's.

    If the width is not a multiple of 4, the remaining channels do not change either.

    Args:
        model: changed in place; the random directions come from torch's global generator.
        clusters: the palette, in [-1, 1].
        size: height and width of the images.
    """
    positions, colors = model.transformer.wpe.weight, model.transformer.wte.weight
    width = positions.shape[1]
    rows_and_columns = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij"), -1)
    num_frequencies = width // 4
    wavelengths = torch.logspace(math.log10(_MIN_WAVELENGTH), math.log10(_MAX_WAVELENGTH * max(size)), num_frequencies)
    phases = rows_and_columns.reshape(-1, 2, 1) * (2 * math.pi / wavelengths)  # (T, 2, K)
    positions[:, : 4 * num_frequencies] = _sines_and_cosines(phases.flatten(1)).to(positions)

    num_frequencies = width // 2
    repeats = math.ceil(num_frequencies / len(_COLOR_FREQUENCIES))
    frequencies = torch.tensor(_COLOR_FREQUENCIES).repeat_interleave(repeats)[:num_frequencies]
    directions = torch.randn(3, num_frequencies) * frequencies
    colors[: len(clusters), : 2 * num_frequencies] = _sines_and_cosines(clusters.float() @ directions).to(colors)


def _sines_and_cosines(phases: Float[Tensor, "n k"]) -> Float[Tensor, "n 2*k"]:
    return torch.cat([phases.sin(), phases.cos()], dim=-1) * (math.sqrt(2) * _RMS)
