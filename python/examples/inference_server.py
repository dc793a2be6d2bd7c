#!/usr/bin/env python3
"""An inference server on the CPU: several threads, one PyTorch model, requests of many sizes, a pool below all of it.

    inference_server.py [--threads 3] [--requests 60] [--default]

--default leaves PyTorch its own allocator. The last line is JSON: seconds, page faults, peak memory of the process in
MiB, and what the pool has to say.
"""

import argparse
import json
import queue
import random
import resource
import sys
import threading
import time

try:
    import torch
except ImportError:
    sys.exit(77)  # skipped


def make_model():
    torch.manual_seed(7)
    layers = torch.nn
    return layers.Sequential(
        layers.Conv2d(3, 32, 3, padding=1), layers.ReLU(), layers.Conv2d(32, 32, 3, padding=1), layers.ReLU(),
        layers.MaxPool2d(2), layers.Conv2d(32, 64, 3, padding=1), layers.ReLU(), layers.AdaptiveAvgPool2d(4),
        layers.Flatten(), layers.Linear(1024, 100)).eval()


def serve(model, requests, answers):
    """A worker: takes requests until there are none."""
    with torch.inference_mode():
        while True:
            try:
                number, images, edge = requests.get_nowait()
            except queue.Empty:
                return
            pictures = torch.full((images, 3, edge, edge), (number % 7) / 7)
            answers[number] = int(model(pictures).softmax(1)[0].argmax())


def usage():
    return resource.getrusage(resource.RUSAGE_SELF)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('--threads', type=int, default=3)
    arguments.add_argument('--requests', type=int, default=60)
    arguments.add_argument('--default', action='store_true')
    given = arguments.parse_args()

    pool = None
    if not given.default:
        import orderly.torch
        pool = orderly.torch.enable(device='cpu')
    torch.set_num_threads(1)  # the threads are the server's
    model = make_model()
    chance = random.Random(1)
    requests, answers = queue.SimpleQueue(), {}
    for number in range(given.requests):
        requests.put((number, chance.randrange(1, 9), chance.choice((64, 96, 128, 160))))

    faults, start = usage().ru_minflt, time.perf_counter()
    workers = [threading.Thread(target=serve, args=(model, requests, answers)) for _ in range(given.threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    report = {'seconds': round(time.perf_counter() - start, 3), 'page_faults': usage().ru_minflt - faults,
              'peak_mib': usage().ru_maxrss >> 10, 'answers': len(answers), 'sum': sum(answers.values())}
    if pool is not None:
        stats = orderly.torch.memory_stats()
        report['requested_peak_mib'] = stats['requested_bytes.all.peak'] >> 20
        report['committed_peak_mib'] = stats['reserved_bytes.all.peak'] >> 20
        report['allocations'] = stats['allocation.all.allocated']
    print(json.dumps(report))


if __name__ == '__main__':
    main()
