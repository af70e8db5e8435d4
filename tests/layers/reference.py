"""The evaluation operations in NumPy, float64, from the definitions of EVALUATION_NETWORK.md, with PyTorch's padding: `pad` pixels on both
sides. `v` holds a layer's variables by the end of their path, as `randomise` returns them."""

import numpy as np


def windows(x, kernel, stride, pad, dilation=1, fill=0.0):
    """The values under each kernel element: [kernel_h * kernel_w, batch, out_h, out_w, channels]; `kernel`, `stride`, `pad` are pairs."""
    padded = np.pad(x, ((0, 0), (pad[0],) * 2, (pad[1],) * 2, (0, 0)), constant_values=fill)
    out = [(padded.shape[1 + axis] - dilation * (kernel[axis] - 1) - 1) // stride[axis] + 1 for axis in (0, 1)]
    taken = []
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            top, left = row * dilation, column * dilation
            rows, columns = (
                slice(top, top + stride[0] * (out[0] - 1) + 1, stride[0]),
                slice(left, left + stride[1] * (out[1] - 1) + 1, stride[1]),
            )
            taken.append(padded[:, rows, columns, :])
    return np.stack(taken)


def conv(x, weights, stride=(1, 1), pad=(0, 0)):
    kernel = weights.reshape(-1, *weights.shape[2:])
    return np.einsum("kbhwi,kio->bhwo", windows(x, weights.shape[:2], stride, pad), kernel)


def depthwise(x, weights, stride, pad, dilation=1):
    return np.einsum("kbhwi,ki->bhwi", windows(x, weights.shape[:2], (stride,) * 2, (pad,) * 2, dilation), weights.reshape(-1, x.shape[-1]))


def relu(x):
    return np.maximum(x, 0.0)


def norm(x, variables, name="norm"):
    gamma, beta, mean, variance = (variables[f"{name}/{part}"] for part in ("gamma", "beta", "moving_mean", "moving_variance"))
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def relu_conv_bn(x, v, kernel=1, stride=1):
    return norm(conv(relu(x), v["conv/kernel"], (stride, stride), (kernel // 2, kernel // 2)), v)


def sep_conv(x, v, kernel, stride):
    for number, each in ((1, stride), (2, 1)):
        x = depthwise(relu(x), v[f"depthwise_{number}/kernel"], each, kernel // 2)
        x = norm(conv(x, v[f"pointwise_{number}/kernel"]), v, f"norm_{number}")
    return x


def dil_conv(x, v, kernel, stride):
    x = depthwise(relu(x), v["depthwise/kernel"], stride, kernel - 1, dilation=2)  # 2 pixels for 3x3, 4 for 5x5
    return norm(conv(x, v["pointwise/kernel"]), v)


def conv_pair(x, v, kernel, stride):
    x = conv(relu(x), v["conv_row/kernel"], (1, stride), (0, kernel // 2))
    return norm(conv(x, v["conv_column/kernel"], (stride, 1), (kernel // 2, 0)), v)


def max_pool(x, stride):
    return windows(x, (3, 3), (stride, stride), (1, 1), fill=-np.inf).max(axis=0)


def average_pool(x, stride):
    """count_include_pad=False: the sum over the pixels of the image, divided by their number."""
    valid = windows(np.ones_like(x), (3, 3), (stride, stride), (1, 1)).sum(axis=0)
    return windows(x, (3, 3), (stride, stride), (1, 1)).sum(axis=0) / valid


def factorized_reduce(x, v):
    x = relu(x)
    halves = conv(x, v["conv_1/kernel"], (2, 2)), conv(x[:, 1:, 1:, :], v["conv_2/kernel"], (2, 2))
    return norm(np.concatenate(halves, axis=-1), v)


def zeros(x, stride):
    return np.zeros_like(x[:, ::stride, ::stride])


def operation(primitive, x, v, stride):
    """What `candidate_operation(primitive, stride=stride)` must give for float64 images `x`."""
    kind, _, size = primitive.rpartition("_")
    if primitive == "none":
        return zeros(x, stride)
    if primitive == "skip_connect":
        return x if stride == 1 else factorized_reduce(x, v)
    if kind in ("max_pool", "avg_pool"):
        return {"max_pool": max_pool, "avg_pool": average_pool}[kind](x, stride)
    if primitive == "conv_7x1_1x7":
        return conv_pair(x, v, 7, stride)
    return {"sep_conv": sep_conv, "dil_conv": dil_conv, "nor_conv": relu_conv_bn}[kind](x, v, int(size.partition("x")[0]), stride)


def images(size, channels=4, seed=0):
    """Negative in the mean, so that zero padding would win a maximum."""
    return np.random.default_rng(seed).normal(-0.5, 1.0, (3, size, size, channels)).astype(np.float32)


def randomise(layer):
    """Gives every variable its own values, moving statistics included; returns them by the end of their path, float64."""
    generator, values = np.random.default_rng(1), {}
    for variable in layer.variables:
        name = "/".join(variable.path.split("/")[-2:])
        if name.endswith(("gamma", "moving_variance")):
            value = generator.uniform(0.5, 2.0, variable.shape)
        else:
            value = generator.normal(0.0, 1.0, variable.shape)
        variable.assign(value)
        values[name] = variable.numpy().astype(np.float64)
    assert len(values) == len(layer.variables)
    return values
