#!/usr/bin/env python3
"""The law of includes: one way down through the layers.

  layers.py FOLDER              reports each breach below the project's folder; exit status 1 if there is one
  layers.py --self-test FOLDER  each rule must find what is planted, and nothing in what keeps it

A header of include/ and lib/ includes only headers of lower rows, a source also those of its own layer. Each source
begins with the header that it implements. cuda/ sees the public headers, and of lib/ what LENT names. A test includes
what it tests. A new header goes into the row above all that it includes.
"""

import pathlib
import re
import sys

# From the ground up. A layer has rows; headers of one row do not know each other.
LAYERS = [
    ('words', [
        ['orderly/checked.hpp', 'orderly/export.h'],
        ['orderly/report.hpp'],
        ['orderly/block_observer.hpp', 'orderly/error.hpp', 'orderly/tag.hpp', 'atomic.hpp', 'fixed_offset.hpp',
         'part_map.hpp', 'reserved_array.hpp', 'size_class.hpp', 'uncancelled.hpp'],
        ['orderly/options.hpp', 'orderly/stats.hpp', 'block_word.hpp', 'free_list.hpp', 'generations.hpp',
         'tag_accounts.hpp', 'tag_names.hpp'],
        ['geometry.hpp'],
        ['chunk_table.hpp'],
    ]),
    ('source', [
        ['orderly/source.hpp', 'orderly/stream.hpp', 'stream/doorbell.hpp'],
        ['orderly/software_stream.hpp', 'stream/event.hpp'],
        ['stream/executor.hpp'],
    ]),
    ('arena', [
        ['annotate.hpp'],
        ['arena.hpp'],
    ]),
    ('buddy', [
        ['buddy.hpp', 'slots.hpp'],
        ['block_store.hpp'],
    ]),
    ('lanes', [
        ['depot.hpp', 'registry.hpp', 'thread_fronts.hpp'],
        ['front.hpp', 'lane.hpp'],
        ['lanes.hpp', 'notes.hpp'],
    ]),
    ('pool', [
        ['keepers.hpp', 'orderly/tensor.hpp', 'pass_mutex.hpp'],
        ['orderly/pool.hpp', 'orderly/stream_pool.hpp', 'observed_blocks.hpp', 'relocation.hpp'],
        ['orderly/relocatable.hpp', 'pool_state.hpp'],
        ['orderly/relocatable_streams.hpp', 'relocatable_set.hpp', 'stream_pool_state.hpp'],
    ]),
    ('adapters', [
        ['orderly/orderly.h', 'orderly/pmr.hpp', 'orderly/cuda.hpp', 'orderly/cuda/kernel.hpp', 'orderly/cuda/torch.h',
         'orderly/tensor_cache.hpp', 'tensor_shelves.hpp'],
        ['c_api.hpp', 'orderly/dlpack.hpp', 'orderly/orderly_cuda.h', 'orderly/cuda_kernel.hpp', 'orderly/cuda/resource.hpp'],
        ['orderly/cuda/rmm.hpp'],
    ]),
]
ROW = {header: number
       for number, row in enumerate(row for _layer, rows in LAYERS for row in rows) for header in row}
LAYER = {header: number for number, (_layer, rows) in enumerate(LAYERS) for row in rows for header in row}

# Sources that are named after no header of their own: what each is a part of.
PARTS = {
    'lib/checked.cpp': 'pool_state.hpp',
    'lib/divide.cpp': 'pool_state.hpp',
    'lib/lane_pass.cpp': 'pool_state.hpp',
    'lib/pass.cpp': 'pool_state.hpp',
    'lib/pool_report.cpp': 'pool_state.hpp',
    'lib/source/fixed_buffer.cpp': 'orderly/source.hpp',
    'lib/source/host.cpp': 'orderly/source.hpp',
    'lib/source/source.cpp': 'orderly/source.hpp',
    'lib/stream/software.cpp': 'orderly/software_stream.hpp',
    'lib/stream/stepper.cpp': 'stream/executor.hpp',
    'lib/stream/stream.cpp': 'orderly/stream.hpp',
    'lib/stream/workers.cpp': 'stream/executor.hpp',
    'cuda/c_api.cpp': 'orderly/orderly_cuda.h',
    'cuda/kernel_lease.cpp': 'kernel_handoff.hpp',
    'cuda/kernel_ring.cpp': 'kernel_handoff.hpp',
    'cuda/no_regions.cpp': 'regions.hpp',
    'cuda/sources.cpp': 'orderly/cuda.hpp',
    'cuda/stream_driver.cpp': 'orderly/cuda.hpp',
    'cuda/torch.cpp': 'orderly/cuda/torch.h',
    'cuda/virtual_source.cpp': 'orderly/cuda.hpp',
}

# Headers of lib/ that cuda/ sees: the door to atomics, and what is behind the handles of the C interface.
LENT = ['atomic.hpp', 'c_api.hpp', 'thread_fronts.hpp']

# Tests that are named after no header: what each tests.
TESTED = {
    'bad_free': 'orderly/pool.hpp',
    'c_api': 'orderly/orderly.h',
    'divide': 'orderly/stream_pool.hpp',
    'exits': 'orderly/pool.hpp',
    'faults': 'orderly/pool.hpp',
    'fixed_buffer': 'orderly/pool.hpp',
    'forks': 'orderly/pool.hpp',
    'kernel': 'orderly/cuda/kernel.hpp',
    'linearizability': 'support/linearizability.hpp',
    'lane_pass': 'orderly/stream_pool.hpp',
    'memory_faults': 'orderly/pool.hpp',
    'out_of_memory': 'orderly/pool.hpp',
    'parks': 'orderly/pool.hpp',
    'pass': 'orderly/pool.hpp',
    'pool_model': 'orderly/pool.hpp',
    'pool_stress': 'support/watched_pool.hpp',
    'soak': 'orderly/pool.hpp',
    'support': 'support/failing_source.hpp',
    'system_faults': 'orderly/pool.hpp',
    'threads': 'orderly/pool.hpp',
}
NO_TESTS = ['main']

COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/', re.DOTALL)
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]', re.MULTILINE)


def includes_of(text):
    """(line, spelled, quoted) of each include."""
    code = COMMENT.sub(lambda match: re.sub(r'[^\n]', ' ', match[0]), text)
    return [(code.count('\n', 0, match.start(2)) + 1, match[2], match[1] == '"') for match in INCLUDE.finditer(code)]


def resolved(path, spelled, files):
    """The file that an include of the project names; None: it is the system's."""
    beside = path.parent / spelled
    for candidate in (beside, pathlib.PurePosixPath('include') / spelled, pathlib.PurePosixPath('lib') / spelled,
                      pathlib.PurePosixPath('tests') / spelled):
        parts = []
        for part in candidate.parts:
            parts = parts[:-1] if part == '..' and parts else [*parts, part]
        name = '/'.join(parts)
        if name in files:
            return name
    return None


def known_as(name):
    """A header as the layers name it."""
    return re.sub(r'^(?:include|lib)/', '', name)


def own_header(name, files):
    """What a source implements."""
    if name in PARTS:
        return PARTS[name]
    folder, base = name.split('/', 1)
    stem = base.rsplit('.', 1)[0]
    for header in (f'{folder}/{stem}.hpp', f'include/orderly/{stem}.hpp'):
        if header in files:
            return known_as(header) if not folder == 'cuda' or header.startswith('include/') else f'{stem}.hpp'
    return None


def tested_by(stem, files):
    if stem in TESTED:
        return TESTED[stem]
    for header in (f'lib/{stem}.hpp', f'include/orderly/{stem}.hpp', f'include/orderly/{stem[:-2]}.h'):
        if header in files and (header.endswith('.hpp') or stem.endswith('_h')):
            return known_as(header)
    return None


def breaches(files):
    """(file, line, what) of each; `files`: texts by name."""
    for header in ROW:
        if f'include/{header}' not in files and f'lib/{header}' not in files:
            yield 'tests/layers.py', 1, f'{header} is in a row, and does not exist'
    for name in sorted(files):
        path = pathlib.PurePosixPath(name)
        folder = path.parts[0]
        found = [(line, spelled, resolved(path, spelled, files), quoted)
                 for line, spelled, quoted in includes_of(files[name])]
        is_header = path.suffix in ('.h', '.hpp')
        if folder in ('include', 'lib') and is_header:
            if known_as(name) not in ROW:
                yield name, 1, 'is in no row of tests/layers.py'
                continue
            for line, spelled, target, _quoted in found:
                if target is not None and ROW.get(known_as(target), 99) >= ROW[known_as(name)]:
                    yield name, line, f'{spelled} does not lie below'
        if folder == 'include':
            for line, spelled, target, quoted in found:
                if (target is None and quoted) or (target is not None and not target.startswith('include/')):
                    yield name, line, f'{spelled} is not public'
        if folder in ('lib', 'cuda') and path.suffix == '.cpp':
            own = own_header(name, files)
            if own is None:
                yield name, 1, 'is a part of no header; say of which in tests/layers.py'
                continue
            first = known_as(found[0][2] or '') if found else ''
            if first not in (own, f'cuda/{own}'):
                yield name, found[0][0] if found else 1, f'begins without its own {own}'
            for line, spelled, target, _quoted in found:
                if folder == 'lib' and target is not None and LAYER.get(known_as(target), 99) > LAYER[own]:
                    yield name, line, f'{spelled} lies above'
        if folder == 'cuda':
            for line, spelled, target, _quoted in found:
                if target is not None and target.startswith('lib/') and known_as(target) not in LENT:
                    yield name, line, f'{spelled} is not for cuda/'
        if folder == 'tests' and len(path.parts) == 2 and path.suffix in ('.c', '.cpp') and path.stem not in NO_TESTS:
            tested = tested_by(path.stem, files)
            if tested is None:
                yield name, 1, 'tests nothing that is known; say what in tests/layers.py'
            elif tested not in [known_as(target or '').removeprefix('tests/') for _line, _spelled, target, _q in found]:
                yield name, 1, f'does not include {tested}, which it tests'


# (file, text to put in front of it; None: no such file), what is to be found.
PLANTED = [
    ('lib/buddy.hpp', '#include "front.hpp"\n', 'front.hpp does not lie below'),
    ('lib/buddy.hpp', '#include "slots.hpp"\n', 'slots.hpp does not lie below'),
    ('lib/stream/event.hpp', '#include "../depot.hpp"\n', '../depot.hpp does not lie below'),
    ('lib/arena.hpp', '  #  include "pool_state.hpp"\n', 'pool_state.hpp does not lie below'),
    ('lib/arena.hpp', '#include <orderly/pool.hpp>\n', 'orderly/pool.hpp does not lie below'),
    ('lib/buddy.hpp', '// #include "front.hpp"\n', None),
    ('lib/front.hpp', '#include "atomic.hpp"\n#include <vector>\n', None),
    ('lib/unheard_of.hpp', '#pragma once\n', 'is in no row of tests/layers.py'),
    ('include/orderly/pool.hpp', '#include "block_word.hpp"\n', 'block_word.hpp is not public'),
    ('include/orderly/pool.hpp', '#include "nowhere.hpp"\n', 'nowhere.hpp is not public'),
    ('lib/buddy.cpp', '#include <vector>\n', 'begins without its own buddy.hpp'),
    ('lib/divide.cpp', '#include "orderly/pool.hpp"\n', 'begins without its own pool_state.hpp'),
    ('lib/buddy.cpp', '#include "buddy.hpp"\n#include "lanes.hpp"\n', 'lanes.hpp lies above'),
    ('lib/unheard_of.cpp', '#include "pool_state.hpp"\n', 'is a part of no header; say of which in tests/layers.py'),
    ('cuda/sources.cpp', '#include "orderly/cuda.hpp"\n#include "arena.hpp"\n', 'arena.hpp is not for cuda/'),
    ('cuda/runtime.hpp', '#include "pool_state.hpp"\n', 'pool_state.hpp is not for cuda/'),
    ('cuda/runtime.cpp', '#include "orderly/cuda.hpp"\n', 'begins without its own runtime.hpp'),
    ('tests/unheard_of.cpp', '#include "arena.hpp"\n', 'tests nothing that is known; say what in tests/layers.py'),
    ('tests/arena.cpp', None, 'does not include arena.hpp, which it tests'),
    ('tests/orderly_h.cpp', None, 'does not include orderly/orderly.h, which it tests'),
    ('lib/slots.hpp', '', None),
]


def self_test(files):
    failures = 0
    for name, planted, expected in PLANTED:
        text = '\n' if planted is None else planted + files.get(name, '')
        found = [what for where, _line, what in breaches({**files, name: text}) if where == name]
        if found != ([] if expected is None else [expected]):
            failures += 1
            print(f'{name}: {planted!r}: found {found}, expected {expected!r}')
    return failures


def read(root):
    return {path.relative_to(root).as_posix(): path.read_text(encoding='utf-8')
            for folder in ('include', 'lib', 'cuda', 'tests') for path in sorted((root / folder).rglob('*'))
            if path.suffix in ('.h', '.hpp', '.c', '.cpp')}


def main(root, planted):
    files = read(pathlib.Path(root))
    if len(files) < 2:
        return 'no files to check'
    if planted:
        return self_test(files)
    found = list(breaches(files))
    for name, line, what in found:
        print(f'{name}:{line}: {what}')
    print(f'{len(files)} files, {len(found)} breaches')
    return len(found)


if __name__ == '__main__':
    if len(sys.argv) not in (2, 3) or (len(sys.argv) == 3 and sys.argv[1] != '--self-test'):
        sys.exit(__doc__)
    sys.exit(1 if main(sys.argv[-1], len(sys.argv) == 3) else 0)
