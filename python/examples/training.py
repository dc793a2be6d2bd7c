#!/usr/bin/env python3
"""A training loop on the CPU whose tensors come from a pool, and whose allocations are recorded on request.

    training.py [--steps 20] [--record LOG]

LOG: as for orderly.record, for example train.csv.xz. Prints the losses, and what the pool has to say.
"""

import argparse
import contextlib
import sys

try:
    import torch
except ImportError:
    sys.exit(77)  # skipped

import orderly
import orderly.torch


def train(steps):
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(128, 512), torch.nn.GELU(), torch.nn.Linear(512, 512), torch.nn.GELU(),
                                torch.nn.Linear(512, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        inputs = torch.randn(32 + 16 * (step % 4), 128)
        wanted = inputs.square().mean(dim=1, keepdim=True)
        loss = (model(inputs) - wanted).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('--steps', type=int, default=20)
    arguments.add_argument('--record')
    given = arguments.parse_args()
    recording = orderly.record(given.record) if given.record else contextlib.nullcontext()
    with orderly.torch.mem_pool(device='cpu') as pool, recording:
        losses = train(given.steps)
    stats = orderly.torch.memory_stats(pool=pool)
    print('losses', ' '.join(f'{loss:.4f}' for loss in losses))
    print(stats['allocation.all.allocated'], 'allocations,', stats['requested_bytes.all.peak'], 'bytes at once')
    assert losses[-1] < losses[0]


if __name__ == '__main__':
    main()
