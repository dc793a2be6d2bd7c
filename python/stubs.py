#!/usr/bin/env python3
"""Writes the stub of the extension module that lies at a path: stubs.py MODULE OUTPUT"""

import importlib.machinery
import importlib.util
import pathlib
import sys
import types

from nanobind.stubgen import StubGen


BUFFERS = ['PinnedBlock', 'Tensor']  # with the buffer protocol, which a type does not show before Python 3.12


def with_buffer(text, name):
    start = text.index(f'class {name}:')
    member = text.index('\n    @property', start)
    if '__buffer__' in text[start:text.find('\nclass ', member)]:
        return text
    return f'{text[:member]}\n    def __buffer__(self, flags: int, /) -> memoryview: ...\n{text[member:]}'


def main(path, output):
    # The package itself is not installed yet: what the module imports of it comes from the sources.
    source = pathlib.Path(__file__).parent / 'orderly'
    package = types.ModuleType('orderly')
    package.__path__ = [str(source)]
    sys.modules['orderly'] = package
    loader = importlib.machinery.ExtensionFileLoader('orderly._core', path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader('orderly._core', loader))
    loader.exec_module(module)
    stub = StubGen(module=module, quiet=True, include_private=False)
    stub.put(module)
    text = stub.get()
    for name in BUFFERS:
        text = with_buffer(text, name)
    text = text.rstrip('\n') + '\n\n__version__: str\n'  # which it passes over, as a name with underscores
    pathlib.Path(output).write_text(text, encoding='utf-8')


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
