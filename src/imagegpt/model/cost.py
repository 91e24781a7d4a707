"""The cost of a model: parameters, bytes and FLOPs, as pure functions of the configuration.

Letters: C width, I inner width of the MLP, L blocks, A total width of a block's heads (C, or less after pruning), V
colours, T positions. A multiply-add counts as two FLOPs. Norms, activations, softmax and embeddings are not counted:
together they are below one percent at the paper's sizes. Cross-attention counts towards the parameters only, because
its FLOPs depend on the encoder.
"""

from imagegpt.config import ImageGPTConfig


def num_parameters(config: ImageGPTConfig) -> int:
    """Return the number of parameters: blocks, final norm C, embeddings (V + 1) C and T C, and `config.head`'s."""
    blocks = sum(_block_parameters(config, layer) for layer in range(config.n_layer))
    embeddings = (config.vocab_size + config.n_positions) * config.n_embd
    outputs = {"pixels": config.num_colors, "classes": config.num_labels, "none": 0}[config.head]
    return blocks + config.n_embd + embeddings + config.n_embd * outputs


def weight_bytes(config: ImageGPTConfig, bytes_per_number: int = 4) -> int:
    """Return the bytes of the weights in memory; the norms' gains stay in float32 under half precision.

    Args:
        bytes_per_number: 4 for float32, 2 for bfloat16 and float16.
    """
    norms_per_block = 3 if config.add_cross_attention else 2
    num_gains = (norms_per_block * config.n_layer + 1) * config.n_embd
    return (num_parameters(config) - num_gains) * bytes_per_number + num_gains * max(4, bytes_per_number)


def cache_bytes_per_pixel(config: ImageGPTConfig, bytes_per_number: int = 4) -> int:
    """Return the bytes of keys and values cached per pixel: 2 A numbers in each block.

    Args:
        bytes_per_number: 4 for float32, 2 for bfloat16 and float16, 1 for int8 (without its scales).
    """
    return 2 * _total_attention_width(config) * bytes_per_number


def forward_flops(config: ImageGPTConfig) -> int:
    """Return the FLOPs of a forward pass over one image, all positions in parallel.

    Returns: 2 T x the weights in matrix products, and 4 T^2 A per block for scores and mixed values. All pairs of
        positions count, masked ones too, because the kernels compute them.
    """
    length = config.n_positions
    return length * 2 * _matmul_weights(config) + 4 * length * length * _total_attention_width(config)


def image_flops(config: ImageGPTConfig) -> int:
    """Return the FLOPs of sampling one whole image pixel by pixel with a cache.

    Returns: 2 T x the weights in matrix products, and 4 (t + 1) A per block for each position t from 0 to T - 1, which
        attends to itself and to all earlier positions.
    """
    length = config.n_positions
    return length * 2 * _matmul_weights(config) + 2 * length * (length + 1) * _total_attention_width(config)


def _total_attention_width(config: ImageGPTConfig) -> int:
    return sum(_attention_width(config, layer) for layer in range(config.n_layer))


def _attention_width(config: ImageGPTConfig, layer_idx: int) -> int:
    return len(config.kept_heads(layer_idx)) * (config.n_embd // config.n_head)


def _matrices(config: ImageGPTConfig, layer_idx: int) -> list[tuple[int, int]]:
    """Return (in, out) of a block's projections: queries, keys and values; attention output; the MLP's two."""
    width, attention = config.n_embd, _attention_width(config, layer_idx)
    return [(width, 3 * attention), (attention, width), (width, config.inner_size), (config.inner_size, width)]


def _block_parameters(config: ImageGPTConfig, layer_idx: int) -> int:
    width = config.n_embd
    matrices, num_norms = _matrices(config, layer_idx), 2
    if config.add_cross_attention:
        matrices += [(width, 2 * width), (width, width), (width, width)]
        num_norms = 3
    biases = sum(out for _, out in matrices) if config.use_bias else 0
    return sum(rows * out for rows, out in matrices) + biases + num_norms * width


def _matmul_weights(config: ImageGPTConfig) -> int:
    """Return the weights each position is multiplied by: projections, and the output matrix of a generative model."""
    blocks = sum(rows * out for layer in range(config.n_layer) for rows, out in _matrices(config, layer))
    return blocks + (config.n_embd * config.num_colors if config.head == "pixels" else 0)
