#!/usr/bin/env python3
"""Do all mutants still fit the sources, and has each survivor that is argued away a mutant? Builds nothing."""

import sys

import mutants

try:
    known, texts = mutants.load()
    mutants.planted(known, texts)
    equivalent = mutants.equivalent(known)
except mutants.Misfit as misfit:
    sys.exit(str(misfit))
print(f'{len(known)} mutants fit, {len(equivalent)} of them argued away')
