#!/usr/bin/env python3
"""What a coverage run says of lib/; called by tests/coverage.

  coverage.py REPORT EXPLAINED PROJECT-FOLDER

REPORT is lcov text. EXPLAINED has paragraphs: a reason after `#`, then lines of lib/ that no test runs for that reason,
as `file: text`, a short text behind that of the line above it. `~ file: text` is one that some runs reach: by chance,
or where there is more to test. Exit status 1 if a line is not run and not explained, or explained and run.
"""

import pathlib
import re
import sys


def read_report(text, root):
    """By file: {line: runs}, branches that were taken, branches."""
    files = {}
    name = None
    for entry in text.splitlines():
        kind, _, value = entry.partition(':')
        if kind == 'SF':
            path = pathlib.Path(value).resolve()
            name = path.relative_to(root).as_posix() if root / 'lib' in path.parents else None
            if name is not None:
                files.setdefault(name, ({}, [0, 0]))
        elif name is None:
            continue
        elif kind == 'DA':
            line, runs = value.split(',')[:2]
            lines = files[name][0]
            lines[int(line)] = max(lines.get(int(line), 0), int(runs))
        elif kind == 'BRF':
            files[name][1][1] += int(value)
        elif kind == 'BRH':
            files[name][1][0] += int(value)
    return files


def read_explained(text):
    """(file, text of the line): whether it must never run."""
    explained = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith('#'):
            chance = line.startswith('~ ')
            file, _, code = line.removeprefix('~ ').partition(': ')
            explained[file, code.strip()] = not chance
    return explained


def name_of(source, line):
    """A line as EXPLAINED names it."""
    text = source[line - 1].strip()
    if len(text) >= 30 or line == 1:
        return text
    return f'{source[line - 2].strip()} / {text}'


def percent(part, whole):
    return f'{100 * part / whole:6.1f}' if whole else '     -'


def main(report, explained, root):
    root = pathlib.Path(root).resolve()
    files = read_report(pathlib.Path(report).read_text(encoding='utf-8'), root)
    if not files:
        return 'nothing was covered'
    explained = read_explained(pathlib.Path(explained).read_text(encoding='utf-8'))
    print(f'{"file":32} {"lines":>7} {"run":>7} {"%":>6} {"branches":>9} {"taken":>7} {"%":>6}')
    totals = [0, 0, 0, 0]
    bare = []
    for name, (lines, (taken, branches)) in sorted(files.items()):
        run = sum(runs > 0 for runs in lines.values())
        row = [len(lines), run, branches, taken]
        totals = [total + value for total, value in zip(totals, row)]
        print(f'{name:32} {row[0]:7} {row[1]:7} {percent(run, len(lines))} {branches:9} {taken:7} '
              f'{percent(taken, branches)}')
        source = (root / name).read_text(encoding='utf-8').splitlines()
        bare += [(name, line, name_of(source, line)) for line, runs in sorted(lines.items())
                 if runs == 0 and not re.fullmatch(r'[{})]+;?', source[line - 1].strip())]
    print(f'{"all":32} {totals[0]:7} {totals[1]:7} {percent(totals[1], totals[0])} {totals[2]:9} {totals[3]:7} '
          f'{percent(totals[3], totals[2])}')

    failures = 0
    print('\nlines that no test runs:')
    for name, line, code in bare:
        known = (name, code) in explained
        failures += not known
        print(f'  {name}:{line}: {code}{"" if known else "    <- not explained"}')
    for (name, code), never in explained.items():
        if never and (name, code) not in {(name, code) for name, _line, code in bare}:
            failures += 1
            print(f'  {name}: {code}    <- explained, and not among them')
    return failures and f'{failures} to explain, or to test'


if __name__ == '__main__':
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]) or 0)
