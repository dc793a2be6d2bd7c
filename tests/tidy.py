#!/usr/bin/env python3
"""Runs clang-tidy over the library, by the rules of .clang-tidy; exit status 1 if it finds anything.

  tidy.py CLANG-TIDY BUILD-FOLDER PROJECT-FOLDER    every source of lib/ and, where it is built, of cuda/
  tidy.py CLANG-TIDY --self-test PROJECT-FOLDER     it must find what is planted

Most of the work for a source is in the headers that it includes, so all sources of a folder are one.
"""

import concurrent.futures
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

FOLDERS = ['lib', 'cuda']
# The tools that a build may be for, too: see lib/annotate.hpp.
ARGUMENTS = ['-std=c++20', '-fsanitize=address', '-Wno-unknown-warning-option']

# Text of a source, and what must be found in it.
PLANTED = [
    ('int CamelCase = 0;', 'readability-identifier-naming'),
    ('#include <string>\nint count(std::string text) { return static_cast<int>(text.size()); }',
     'performance-unnecessary-value-param'),
    ('struct s { virtual ~s() = default; virtual void f(); }; struct t : s { virtual void f(); };',
     'modernize-use-override'),
    ('#include <cstdlib>\nint main() { int* p = static_cast<int*>(std::malloc(4)); std::free(p); return *p; }',
     'clang-analyzer-unix.Malloc'),
    ('void f() noexcept { throw 1; }', 'bugprone-exception-escape'),
]
UNIT = '#include <string>\nint count(const std::string& text) { return static_cast<int>(text.size()); }\n'


def run(tidy, root, source, arguments):
    """What clang-tidy says of a source; empty if nothing."""
    done = subprocess.run(
        [tidy, '--quiet', f'--config-file={root}/.clang-tidy', '--checks=-bugprone-suspicious-include',
         '--warnings-as-errors=*', str(source), '--', *ARGUMENTS, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        return done.stdout + done.stderr
    return done.stdout


def sources(build, root):
    """Sources and include arguments of each folder that is built."""
    found = {}
    for entry in json.loads((build / 'compile_commands.json').read_text(encoding='utf-8')):
        path = (build / entry['file']).resolve()
        if root not in path.parents or path.suffix != '.cpp' or path.relative_to(root).parts[0] not in FOLDERS:
            continue
        words = shlex.split(entry['command'])
        includes = [word if word[2:].startswith('/') else f'-I{(build / word[2:]).resolve()}'
                    for word in words if word.startswith('-I')]
        includes += [word for word in words if word.startswith('-isystem')]
        listed, arguments = found.setdefault(path.relative_to(root).parts[0], (set(), []))
        listed.add(path)
        arguments.extend(word for word in includes if word not in arguments)
    return found


def check(tidy, build, root):
    found = sources(build, root)
    if not found.get('lib'):
        return f'no sources of the library in {build}/compile_commands.json'
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor() as pool:
        jobs = []
        for name, (listed, arguments) in found.items():
            unit = pathlib.Path(folder) / f'{name}.cpp'
            unit.write_text(''.join(f'#include "{path}"\n' for path in sorted(listed)), encoding='utf-8')
            jobs.append(pool.submit(run, tidy, root, unit, arguments))
        said = ''.join(job.result() for job in jobs)
    print(f'{sum(len(listed) for listed, _arguments in found.values())} sources')
    return said


def self_test(tidy, root):
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / 'planted.cpp'
        for text, expected in [*PLANTED, (UNIT, None)]:
            source.write_text(text, encoding='utf-8')
            said = run(tidy, root, source, [])
            if said if expected is None else not re.search(expected, said):
                failures.append(f'expected {expected or "nothing"} of {text!r}\n{said}')
    return '\n'.join(failures)


if __name__ == '__main__':
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    _name, TIDY, BUILD, ROOT = sys.argv
    ROOT = pathlib.Path(ROOT).resolve()
    sys.exit((self_test(TIDY, ROOT) if BUILD == '--self-test' else check(TIDY, pathlib.Path(BUILD), ROOT)) or 0)
