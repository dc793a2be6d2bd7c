#!/usr/bin/env python3
"""CuPy's arrays from a pool, in two streams. Exit status 77: no CuPy, no GPU, or orderly was built without CUDA."""

import sys

import orderly

if not orderly.has_cuda:
    sys.exit(77)
try:
    import cupy
    cupy.cuda.runtime.getDeviceCount()
except Exception:  # no CuPy, no driver, no device: each raises something else
    sys.exit(77)

import orderly.cupy


def main():
    orderly.cupy.enable()
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    totals = []
    for number, stream in enumerate(streams):
        with stream:
            values = cupy.arange(1_000_000, dtype=cupy.float32) + number
            totals.append(values.sum())
    for stream in streams:
        stream.synchronize()
    print([float(total) for total in totals], orderly.cupy.pool().stats())


if __name__ == '__main__':
    main()
