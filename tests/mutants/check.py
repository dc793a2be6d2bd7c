#!/usr/bin/env python3
"""Do all mutants still fit the sources, and is each that is argued away, or beyond a method, there? Builds nothing."""

import sys

import mutants

try:
    known, texts = mutants.load()
    mutants.planted(known, texts)
    equivalent = mutants.equivalent(known)
    mutants.unseen(known)
except mutants.Misfit as misfit:
    sys.exit(str(misfit))
print(f'{len(known)} mutants fit, {len(equivalent)} of them argued away')
