"""Train a residual convolutional network on synthetic images: few allocations, large ones.

What an allocator sees: feature maps of several megabytes that shrink as channels grow, scratch
space inside the convolutions that lives for one call, batch-norm statistics that live for ever, and
the mini-batches a DataLoader puts together. The last batch of every epoch is smaller than the
others, so once per epoch all sizes change and cached blocks no longer fit exactly.
"""

from __future__ import annotations

import argparse
from itertools import count, islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

CLASSES, IMAGES, BATCH, PIXELS = 8, 300, 32, 32


class Residual(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; `stride` 2 halves the height and width."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = (
            nn.Identity()
            if (channels_in, stride) == (channels, 1)
            else nn.Conv2d(channels_in, channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.path(x) + self.shortcut(x))


def network() -> nn.Sequential:
    """Images (batch, 3, PIXELS, PIXELS) to logits (batch, CLASSES)."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Residual(32, 32, 1),
        Residual(32, 64, 2),
        Residual(64, 128, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, CLASSES),
    )


def images() -> TensorDataset:
    """Noisy copies of one smooth pattern per class, with the classes as labels."""
    patterns = F.interpolate(torch.randn(CLASSES, 3, 4, 4), size=PIXELS, mode="bilinear")
    labels = torch.randint(CLASSES, (IMAGES,))
    return TensorDataset(patterns[labels] + torch.randn(IMAGES, 3, PIXELS, PIXELS), labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    loader = DataLoader(images(), batch_size=BATCH, shuffle=True)
    model = network()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    batches = (batch for _ in count() for batch in loader)
    for step, (pictures, labels) in enumerate(islice(batches, steps)):
        loss = F.cross_entropy(model(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1:3d}  loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
