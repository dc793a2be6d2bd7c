#!/usr/bin/env python3
"""Frames that pass from a producer to consumers without a copy: tensors of a cache, seen by NumPy.

Prints how many frames there were, and how often a frame's memory was used again.
"""

import queue
import sys
import threading

import orderly

try:
    import numpy
except ImportError:
    sys.exit(77)  # skipped

FRAMES, SHAPE = 200, (480, 640, 3)


def main():
    pool = orderly.MemoryPool(capacity=256 << 20)
    frames = orderly.TensorCache(pool)
    waiting = queue.Queue(maxsize=8)
    sums = []

    def consume():
        while (frame := waiting.get()) is not None:
            sums.append(int(numpy.asarray(frame)[0, 0, 0]))
            # Here the frame's last reference goes, and its memory is the cache's again.

    consumers = [threading.Thread(target=consume) for _ in range(2)]
    for consumer in consumers:
        consumer.start()
    for number in range(FRAMES):
        frame = frames.empty(SHAPE, 'uint8')
        numpy.asarray(frame)[...] = number % 256
        waiting.put(frame)
        del frame
    for _ in consumers:
        waiting.put(None)
    for consumer in consumers:
        consumer.join()
    stats = frames.stats()
    print(f'{len(sums)} frames, {stats["hits"]} of them in memory that was there; sum {sum(sums)}')
    assert len(sums) == FRAMES and stats['misses'] <= 16


if __name__ == '__main__':
    main()
