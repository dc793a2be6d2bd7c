#!/usr/bin/env python3
"""How much memory a model needs that does not fit here: its allocations are simulated, and replayed on a pool.

    large_model.py [--width 8192] [--layers 40] [--words 2048] [--adam] [--log LOG]

A transformer in training, with 61 GiB of parameters of two bytes by default, in the memory of any machine. Prints what
it takes. LOG: where the log stays, for orderly-replay.
"""

import argparse
import pathlib
import sys
import tempfile
import warnings

try:
    import torch
except ImportError:
    sys.exit(77)  # skipped

import orderly.replay
import orderly.torch

nn = torch.nn
VOCABULARY = 50257


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, width // 128, batch_first=True)
        self.rise, self.fall = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.fall(nn.functional.gelu(self.rise(self.between(x))))


class Transformer(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.layers = nn.Sequential(*(Layer(width) for _ in range(layers)))
        self.out = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, words):
        return self.out(self.layers(self.words(words)))


def loss(scores):
    wanted = torch.zeros(scores.shape[:2], dtype=torch.long, device=scores.device)
    return nn.functional.cross_entropy(scores.flatten(0, 1).float(), wanted.flatten())


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('--width', type=int, default=8192)
    arguments.add_argument('--layers', type=int, default=40)
    arguments.add_argument('--words', type=int, default=2048)
    arguments.add_argument('--adam', action='store_true', help='with the state of Adam')
    arguments.add_argument('--log', type=pathlib.Path)
    given = arguments.parse_args()
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as folder:
        log = given.log or pathlib.Path(folder) / 'large.csv.xz'
        found = orderly.torch.simulate(
            lambda: Transformer(given.width, given.layers).to(torch.bfloat16),
            torch.empty(1, given.words, dtype=torch.long, device='meta'), log, training=True, loss=loss,
            optimizer=torch.optim.Adam if given.adam else None)
        replayed = orderly.replay.replay(log, chunk=2 << 20, find_limit=True)
    print(f'{found.parameters / 2**30:.1f} GiB of parameters, {found.peak / 2**30:.1f} GiB live at once, in '
          f'{found.allocations} allocations')
    print(f'a pool with chunks of 2 MiB serves them within '
          f'{replayed["least_limit_over_live"] * found.peak / 2**30:.1f} GiB')
    assert replayed['refused'] == 0


if __name__ == '__main__':
    main()
