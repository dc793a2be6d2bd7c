#!/usr/bin/env python3
"""Do all mutants still fit the sources and compile, and is each that is argued away, or beyond a method, there?

  tests/mutants/check.py COMPILER [ARGUMENT...]
"""

import pathlib
import subprocess
import sys
import tempfile

import mutants

try:
    known, texts = mutants.load()
    planted = mutants.planted(known, texts)
    equivalent = mutants.equivalent(known)
    mutants.unseen(known)
except mutants.Misfit as misfit:
    sys.exit(str(misfit))

with tempfile.TemporaryDirectory() as folder:
    tree = pathlib.Path(folder)
    for file, text in planted.items():
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).write_text(text)
    chooser = tree / 'mutants.hpp'
    chooser.write_text(mutants.CHOOSER)
    includes = [f'-I{folder}' for folder in (tree / 'lib', mutants.ROOT / 'include')]
    everything = ''.join(f'#include "{tree / file}"\n' for file in planted if file.endswith('.cpp'))
    command = [*sys.argv[1:], '-std=c++20', '-fsyntax-only', '-w', '-include', str(chooser), *includes, '-x', 'c++', '-']
    if subprocess.run(command, input=everything, text=True).returncode != 0:
        sys.exit('the sources do not compile with the mutants planted; write the one that is named here otherwise')
print(f'{len(known)} mutants fit, {len(equivalent)} of them argued away')
