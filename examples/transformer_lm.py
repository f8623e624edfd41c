"""Train a small GPT on synthetic text: the same tensors, of the same sizes, at every step.

What an allocator sees: the forward pass stacks up activations block by block, the backward pass
gives them back in the opposite order while gradients appear, and AdamW's state arrives at the first
step and stays. The attention scores (batch x heads x length x length) are the largest short-lived
tensors. A cache that keeps freed blocks serves every later step from memory it already holds.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY, LENGTH, BATCH, WIDTH, HEADS, LAYERS = 512, 128, 8, 192, 6, 4


class Block(nn.Module):
    """Causal self-attention, then a feed-forward network, each with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.feed_forward = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        self.register_buffer("later", mask, persistent=False)

    def attend(self, x: Tensor) -> Tensor:
        heads = self.query_key_value(x).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5
        weights = scores.masked_fill(self.later, float("-inf")).softmax(dim=-1)
        return self.project((weights @ value).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm_1(x))
        return x + self.feed_forward(self.norm_2(x))


class GPT(nn.Module):
    """Token and position embeddings, `LAYERS` blocks, logits over the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY))

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.size(1))
        return self.head(self.blocks(self.token(tokens) + self.position(positions)))


def sample_text(batch: int, successor: Tensor) -> Tensor:
    """Token sequences (batch, LENGTH + 1): each has one of four likely successors."""
    tokens = torch.randint(VOCABULARY, (batch, 1))
    for _ in range(LENGTH):
        choice = torch.randint(successor.size(1), (batch,))
        tokens = torch.cat([tokens, successor[tokens[:, -1], choice].unsqueeze(1)], dim=1)
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    # Zipf-like: few tokens are frequent, as in text, so there is something to learn early on.
    frequency = 1 / torch.arange(1.0, VOCABULARY + 1)
    successor = torch.multinomial(frequency.expand(VOCABULARY, -1), 4)
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        tokens = sample_text(BATCH, successor)
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        print(f"step {step + 1:3d}  loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
