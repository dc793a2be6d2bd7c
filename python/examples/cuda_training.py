#!/usr/bin/env python3
"""A training step on a GPU with all of PyTorch's memory in a pool. Exit status 77: no GPU, or no CUDA in PyTorch or
orderly."""

import sys

import orderly

try:
    import torch
except ImportError:
    sys.exit(77)
if not (orderly.has_cuda and torch.cuda.is_available()):
    sys.exit(77)

import orderly.torch


def main():
    orderly.torch.enable(device='cuda')  # before the first use of the device
    model = torch.nn.Sequential(torch.nn.Linear(512, 2048), torch.nn.GELU(), torch.nn.Linear(2048, 10)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(10):
        loss = model(torch.randn(64 + step, 512, device='cuda')).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    print(loss.item(), orderly.torch.memory_stats())


if __name__ == '__main__':
    main()
