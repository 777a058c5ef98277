"""The same work in PyTorch: eager, channels-last, as a CUDA graph, compiled."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torchvision  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from cnnjax import models
from experiments.rivals.cases import CLASSES, Case, Precision
from experiments.rivals.jax_side import DECAY, LEARNING_RATE, MOMENTUM, UNIT, images_and_labels
from experiments.rivals.resident import Work, growth


def set_precision(precision: Precision) -> None:
    """For the whole process. A GPU also looks for the fastest algorithm of each convolution at its first call."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
    torch.backends.cudnn.benchmark = True


def _device(case: Case) -> str:
    return "cuda" if case.device == "gpu" else "cpu"


def _mixed(case: Case) -> torch.autocast:
    """PyTorch's mixed precision: convolutions and products in bfloat16, weights and loss in float32."""
    return torch.autocast(_device(case), torch.bfloat16, enabled=case.precision == "bfloat16")


def _done(case: Case) -> None:
    """Waits for all that was begun."""
    if case.device == "gpu":
        torch.cuda.synchronize()


def _network(case: Case) -> nn.Module:
    """Known networks as torchvision has them, with its dropout, whose rate changes no time."""
    assert case.model is not None
    if case.model.name == "resnet20":
        return _ResNet20()
    if case.model.name in models.KNOWN:
        return getattr(torchvision.models, case.model.name)(weights=None, num_classes=CLASSES)
    return _chain(case)


class _Block(nn.Module):
    """Of the residual network for CIFAR, with shortcuts without parameters (He et al. 2016, section 4.2)."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.stride, self.more = stride, (width - channels) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu_(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return torch.relu_(y + x)


class _ResNet20(nn.Sequential):
    def __init__(self):
        blocks = [
            _Block(channels, width, stride)
            for before, width in ((16, 16), (16, 32), (32, 64))
            for channels, stride in ((before, width // before), (width, 1), (width, 1))
        ]
        first = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        super().__init__(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def _chain(case: Case) -> nn.Sequential:
    network, layers, channels = case.network(), [], case.shape[-1]
    assert isinstance(network, models.ConvNet)
    size = case.shape[0]
    for layer in network.convolutions:
        layers += [nn.Conv2d(channels, layer.width, layer.filter, layer.stride, layer.padding), nn.ReLU()]
        size = (size - layer.filter + 2 * layer.padding) // layer.stride + 1
        if layer.pool:
            layers.append(nn.MaxPool2d(layer.pool.window, layer.pool.stride, layer.pool.padding))
            size = (size - layer.pool.window + 2 * layer.pool.padding) // layer.pool.stride + 1
        if layer.norm == "lrn":
            layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))  # its alpha is divided by the size
        channels = layer.width
    layers.append(nn.Flatten())
    inputs = channels * size * size
    for units in network.dense:
        layers += [nn.Linear(inputs, units), nn.ReLU()]
        inputs = units
    network = nn.Sequential(*layers, nn.Linear(inputs, CLASSES))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def _images_and_labels(case: Case, memory_format: torch.memory_format) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = images_and_labels(case)
    images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1))).to(_device(case))
    return images.to(memory_format=memory_format), torch.from_numpy(labels.astype(np.int64)).to(_device(case))


def _training(case: Case, channels_last: bool, compiled: bool = False, graph: bool = False) -> Work:
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    network = _network(case).to(_device(case), memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=DECAY, fused=True)
    images, labels = _images_and_labels(case, memory_format)
    criterion = nn.CrossEntropyLoss()
    rows = torch.arange(case.images, device=_device(case)).reshape(-1, case.batch)

    def objective(x, y):
        with _mixed(case):
            return criterion(network(x), y)

    if compiled:  # on a GPU its programs are replayed as CUDA graphs
        objective = torch.compile(objective, mode="reduce-overhead" if case.device == "gpu" else None)

    def step(chosen: torch.Tensor) -> torch.Tensor:
        x = ((images[chosen].float() - 127.5) / UNIT).contiguous(memory_format=memory_format)
        optimizer.zero_grad(set_to_none=True)
        loss = objective(x, labels[chosen])
        loss.backward()
        optimizer.step()
        return loss

    if graph:
        step = _as_graph(case, step, rows[0], optimizer)

    def work(count: int) -> float:
        for index in range(count):
            loss = step(rows[index % len(rows)])
        _done(case)
        return float(loss.detach())

    return work


def _inference(case: Case, channels_last: bool, compiled: bool = False) -> Work:
    """The logits of one batch at evaluation."""
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    network = _network(case).to(_device(case), memory_format=memory_format).eval()  # pyright: ignore[reportCallIssue]
    images, _ = _images_and_labels(case, memory_format)
    images = images[: case.batch]
    forward = torch.compile(network) if compiled else network

    @torch.inference_mode()
    def work(count: int) -> float:
        for _ in range(count):
            forward(((images.float() - 127.5) / UNIT).contiguous(memory_format=memory_format))
        _done(case)
        return float("nan")

    return work


def _as_graph(case: Case, step: Callable, chosen: torch.Tensor, optimizer: torch.optim.Optimizer) -> Callable:
    """The whole step recorded once and replayed, its rows copied to where the graph reads them; a CPU has no graphs."""
    if case.device == "cpu":
        return step
    chosen, apart = chosen.clone(), torch.cuda.Stream()
    apart.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(apart):  # as the recording asks for: algorithms are chosen, the momentum is there
        for _ in range(4):
            step(chosen)
    torch.cuda.current_stream().wait_stream(apart)
    optimizer.zero_grad(set_to_none=True)  # so that the gradients lie in the graph's own memory
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(chosen).detach()

    def replayed(rows: torch.Tensor) -> torch.Tensor:
        chosen.copy_(rows)
        graph.replay()
        return loss

    return replayed


def _stacked_members(case: Case) -> Work:
    """`torch.func`: the members' weights stacked, the gradient of one under `vmap`, one batch for all."""
    torch.manual_seed(0)
    networks = [_network(case).to(_device(case)) for _ in range(case.members)]
    params, _ = torch.func.stack_module_state(networks)
    optimizer = torch.optim.SGD(params.values(), LEARNING_RATE, MOMENTUM, weight_decay=DECAY, fused=True)
    images, labels = _images_and_labels(case, torch.contiguous_format)
    rows = torch.arange(case.images, device=_device(case)).reshape(-1, case.batch)

    def objective(own, x, y):
        with _mixed(case):
            return nn.functional.cross_entropy(torch.func.functional_call(networks[0], own, (x,)), y)

    gradients = torch.func.vmap(torch.func.grad_and_value(objective), in_dims=(0, None, None))

    def work(count: int) -> float:
        for index in range(count):
            chosen = rows[index % len(rows)]
            x = (images[chosen].float() - 127.5) / UNIT
            found, losses = gradients({name: leaf.detach() for name, leaf in params.items()}, x, labels[chosen])
            for name, leaf in params.items():
                leaf.grad = found[name]
            optimizer.step()
        _done(case)
        return float(losses.mean())

    return work


def _repeated(case: Case, function: Callable[[], Any]) -> Work:
    """Work that has no loss."""

    def work(count: int) -> float:
        for _ in range(count):
            function()
        _done(case)
        return float("nan")

    return work


def _normal(case: Case, *shape: int) -> torch.Tensor:
    dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
    return torch.randn(shape, device=_device(case), dtype=dtype)


def _batch(case: Case, channels_last: bool) -> torch.Tensor:
    return _laid_out(_normal(case, case.batch, case.shape[-1], *case.shape[:-1]), channels_last)


def _laid_out(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.ndim]) if channels_last and x.ndim in formats else x


def _convolution(case: Case, channels_last: bool) -> Work:
    spatial = len(case.shape) - 1
    conv = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}[spatial]
    x = _batch(case, channels_last).requires_grad_()
    kernel = _normal(case, case.width, case.shape[-1] // case.groups, *(case.window,) * spatial)
    kernel = _laid_out(kernel, channels_last).requires_grad_()
    if spatial == 2 and case.groups == 1:

        @torch.no_grad()
        def forward():
            conv(x, kernel, padding=case.window // 2)

        return _repeated(case, forward)

    def once():
        out = conv(x, kernel, padding=case.window // 2, groups=case.groups)
        torch.autograd.grad(out, (x, kernel), out.detach())

    return _repeated(case, once)


def _response_norm(case: Case, channels_last: bool) -> Work:
    x = _batch(case, channels_last).requires_grad_()
    norm = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    return _repeated(case, lambda: torch.autograd.grad((norm(x) ** 2).sum(), x))


def _pool(case: Case, channels_last: bool) -> Work:
    x = _batch(case, channels_last).requires_grad_()
    pool = nn.MaxPool2d(case.window, case.stride)
    return _repeated(case, lambda: torch.autograd.grad((pool(x) ** 2).sum(), x))


def _matrix_rate(case: Case) -> Work:
    x = _normal(case, *case.shape)
    return _repeated(case, lambda: x @ x)


def _copy(case: Case) -> Work:
    x = _normal(case, *case.shape)
    into = torch.empty_like(x)
    return _repeated(case, lambda: into.copy_(x))


RIVALS: dict[str, Callable[[Case], Work]] = {
    "torch": lambda case: _training(case, False),
    "torch channels-last": lambda case: _training(case, True),
    "torch graph": lambda case: _training(case, False, graph=True),
    "torch graph channels-last": lambda case: _training(case, True, graph=True),
    "torch compiled": lambda case: _training(case, True, compiled=True),
    "torch func": _stacked_members,
    "torch forward": lambda case: _inference(case, False),
    "torch forward channels-last": lambda case: _inference(case, True),
    "torch forward compiled": lambda case: _inference(case, True, compiled=True),
    "torch memory": lambda case: growth(lambda: _training(case, False)),
    "torch memory channels-last": lambda case: growth(lambda: _training(case, True)),
    "torch memory compiled": lambda case: growth(lambda: _training(case, True, compiled=True)),
    "torch conv": lambda case: _convolution(case, False),
    "torch conv channels-last": lambda case: _convolution(case, True),
    "torch norm": lambda case: _response_norm(case, False),
    "torch norm channels-last": lambda case: _response_norm(case, True),
    "torch pool": lambda case: _pool(case, False),
    "torch pool channels-last": lambda case: _pool(case, True),
    "torch matrix rate": _matrix_rate,
    "torch copy": _copy,
}
