#!/usr/bin/env python3
"""Runs each program of an executable under a tool, and checks what the tool says of it.

  check.py address|memcheck EXECUTABLE SOURCE

Called without an argument the executable prints its programs. One whose name stands after FAULT in the source is wrong:
the tool must report it, and the first frame in the source must be that line. The others must end well, with no report.
"""

import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys

TOOLS = {
    'address': ([], r'ERROR: (?:AddressSanitizer: use-after-poison|LeakSanitizer: detected memory leaks)'),
    'memcheck': (['valgrind', '--error-exitcode=99', '--leak-check=full', '--errors-for-leak-kinds=definite'],
                 r'Invalid (?:read|write)|are definitely lost in'),
}


def faults_of(source):
    """Line of each fault by the name of its program."""
    lines = source.read_text(encoding='utf-8').splitlines()
    marks = [(number, re.search(r'\bFAULT (\w+)', line)) for number, line in enumerate(lines, 1)]
    return {mark[1]: number for number, mark in marks if mark}


def complaint(program, line, command, report, source):
    """What is wrong with what the tool said; empty if nothing."""
    run = subprocess.run([*command, program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                         errors='replace', env={**os.environ, 'ASAN_OPTIONS': 'detect_leaks=1'})
    found = re.search(report, run.stdout)
    if line is None:
        good = run.returncode == 0 and not found
        return '' if good else f'{program}: exit status {run.returncode}, expected nothing to report\n{run.stdout}'
    frame = re.search(rf'\b{re.escape(source.name)}:(\d+)\b', run.stdout[found.start():]) if found else None
    if run.returncode != 0 and frame and int(frame[1]) == line:
        return ''
    seen = f'line {frame[1]}' if frame else 'no line' if found else 'no report'
    return f'{program}: exit status {run.returncode}, {seen}; expected a report of line {line}\n{run.stdout}'


def main(tool, executable, source):
    source = pathlib.Path(source)
    prefix, report = TOOLS[tool]
    usage = subprocess.run([executable], stderr=subprocess.PIPE, text=True, check=False).stderr
    programs = re.findall(r'^  (\w+)$', usage, re.MULTILINE)
    faults = faults_of(source)
    wrong = [program for program in programs if program in faults]
    if not wrong or len(wrong) == len(programs) or len(wrong) != len(faults):
        return f'{len(programs)} programs, {len(wrong)} of them wrong, {len(faults)} faults in {source}'
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        complaints = list(pool.map(
            lambda program: complaint(program, faults.get(program), [*prefix, executable], report, source), programs))
    print(f'{len(programs)} programs, {len(wrong)} of them wrong')
    return '\n'.join(filter(None, complaints))


if __name__ == '__main__':
    if len(sys.argv) != 4 or sys.argv[1] not in TOOLS:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]) or 0)
