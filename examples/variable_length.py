"""Train a sequence classifier on sentences of varying length: no two steps ask for the same sizes.

What an allocator sees: every batch is padded to its own longest sequence, so activations, attention
scores (which grow with the square of the length) and gradients all change size from step to step.
A block that served the last step is a little too small or a little too large for this one: cached
memory piles up beside live memory, free blocks are split, and what is left between them is too
small for the next long batch. This is how fragmentation comes about in practice.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

VOCABULARY, CLASSES, BATCH, WIDTH, HEADS, LAYERS = 256, 4, 16, 128, 4, 3
SHORTEST, LONGEST, PADDING = 8, 240, 0


class Classifier(nn.Module):
    """Transformer encoder over padded tokens (batch, length), averaged over the real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH, padding_idx=PADDING)
        self.position = nn.Embedding(LONGEST, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.1, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == PADDING
        positions = torch.arange(tokens.size(1))
        encoded = self.encoder(
            self.token(tokens) + self.position(positions), src_key_padding_mask=padding
        )
        real = ~padding.unsqueeze(-1)
        return self.head((encoded * real).sum(dim=1) / real.sum(dim=1))


def sample_batch() -> tuple[Tensor, Tensor]:
    """Padded tokens (BATCH, longest of the batch) and classes (BATCH,).

    Lengths are log-normal, as sentence lengths are: most short, a few very long. A class shows in
    its words: half of them come from the class's own part of the vocabulary.
    """
    lengths = torch.empty(BATCH).log_normal_(3.6, 0.7).clamp(SHORTEST, LONGEST).long()
    classes = torch.randint(CLASSES, (BATCH,))
    part = (VOCABULARY - 1) // CLASSES
    sentences = []
    for length, own in zip(lengths.tolist(), classes.tolist(), strict=True):
        anywhere = torch.randint(1, VOCABULARY, (length,))
        typical = torch.randint(1 + own * part, 1 + (own + 1) * part, (length,))
        sentences.append(torch.where(torch.rand(length) < 0.5, typical, anywhere))
    return pad_sequence(sentences, batch_first=True, padding_value=PADDING), classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for step in range(steps):
        tokens, classes = sample_batch()
        loss = F.cross_entropy(model(tokens), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        length = tokens.size(1)
        print(f"step {step + 1:3d}  length {length:3d}  loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
