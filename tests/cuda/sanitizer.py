#!/usr/bin/env python3
"""Runs sanitizer.cpp's program under compute-sanitizer: what it does wrong must be reported, and nothing else.

  sanitizer.py PROGRAM
"""

import pathlib
import shutil
import subprocess
import sys

SKIPPED = 77
REPORTED = 99


def find_tool():
    beside = '/usr/local/cuda/bin/compute-sanitizer'
    return shutil.which('compute-sanitizer') or (beside if pathlib.Path(beside).exists() else None)


def main(program):
    if subprocess.run([program, 'clean'], capture_output=True).returncode == SKIPPED:
        print('skipped: no CUDA device')
        return SKIPPED
    tool = find_tool()
    if tool is None:
        print('skipped: compute-sanitizer is not installed')
        return SKIPPED
    failures = 0
    for what, reported in (('clean', False), ('freed', True), ('past_end', True)):
        command = [tool, '--tool', 'memcheck', '--nvtx', 'yes', '--error-exitcode', str(REPORTED), program, what]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        invalid = 'Invalid __global__ write' in run.stdout
        ended = 'done' in run.stdout.split()
        right = invalid == reported and ended and run.returncode == (REPORTED if reported else 0)
        print(f'{what}: status {run.returncode}, {"" if invalid else "no "}invalid write reported')
        if not right:
            failures += 1
            print(run.stdout)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]) if len(sys.argv) == 2 else __doc__)
