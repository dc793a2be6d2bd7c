#!/usr/bin/env python3
"""Rules of the library's sources that no compiler checks.

  rules.py FOLDER...    reports each breach in the C and C++ files of the folders; exit status 1 if there is one
  rules.py --self-test  each rule must find what its examples plant, and nothing in the others
"""

import pathlib
import re
import sys

# Arguments that name every memory order, by method of an atomic object.
ORDERED_ARGUMENTS = {
    'load': 1, 'store': 2, 'exchange': 2, 'test_and_set': 1,
    'fetch_add': 2, 'fetch_sub': 2, 'fetch_and': 2, 'fetch_or': 2, 'fetch_xor': 2,
    'compare_exchange_weak': 3, 'compare_exchange_strong': 3,
}
ATOMIC_CALL = re.compile(r'(?:\.|->)\s*(%s)\s*\(' % '|'.join(ORDERED_ARGUMENTS))
ATOMIC_DECLARATION = re.compile(r'\batomic(?:_ref)?\s*<[^;{}()]*>\s+(\w+)\s*[;={\[]')
SKIPPED = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|(?<!\w)\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def code_of(text):
    """The text with comments and literals blanked, every offset and line kept."""
    return SKIPPED.sub(lambda match: re.sub(r'[^\n]', ' ', match[0]), text)


def argument_count(code, start):
    """Arguments of the call whose opening parenthesis ends at `start`."""
    depth, commas = 1, 0
    for end in range(start, len(code)):
        depth += {'(': 1, '{': 1, '[': 1, ')': -1, '}': -1, ']': -1}.get(code[end], 0)
        if depth == 0:
            return commas + 1 if code[start:end].strip() else 0
        commas += depth == 1 and code[end] == ','
    return commas


def included(pattern, text):
    return [match.start(1) for match in INCLUDE.finditer(text) if re.search(pattern, match[1])]


def default_orders(_path, _text, code):
    for match in ATOMIC_CALL.finditer(code):
        if argument_count(code, match.end()) < ORDERED_ARGUMENTS[match[1]]:
            yield match.start(1)
    for name in set(ATOMIC_DECLARATION.findall(code)):
        # Not after a type: there the name is declared.
        used = rf'(?:\+\+|--)\s*{name}\b|(?<![\w>&*] )\b{name}(?:\[[^\]]*\])?\s*(?:\+\+|--|[-+&|^]=|=(?!=))'
        yield from (match.start() for match in re.finditer(used, code))


def words(pattern):
    return lambda _path, _text, code: [match.start() for match in re.finditer(pattern, code)]


def second_door(path, _text, code):
    if path.as_posix().endswith('lib/atomic.hpp'):
        return []
    named = (r'\bstd\s*::\s*(?:atomic|memory_order|(?:\w+_)?mutex|condition_variable)|'
             r'\bthis_thread\s*::\s*(?:yield|sleep)|#\s*include\s*<(?:atomic|condition_variable)>')
    return [match.start() for match in re.finditer(named, code)]


def cuda_headers(path, text, _code):
    """Headers for users' device code may include CUDA's; other public ones of orderly_cuda include those, and lib/ none."""
    name = path.as_posix()
    if '/orderly/cuda/' in name:
        return []
    own = r'(?!orderly/cuda/)' if '/orderly/' in name else ''
    return included(rf'^{own}.*(?:cuda|cub/|thrust/|nvtx)', text)


# Name of the rule; the rule: offsets of breaches in a file; examples that break it; examples that do not. An example
# is of lib/example.hpp, or of the file that it is a pair with.
RULES = [
    ('CUDA headers are included below cuda/ only',
     cuda_headers,
     ['#include <cuda_runtime.h>', '# include "cuda/virtual.hpp"', '#include <cub/cub.cuh>',
      '#include "orderly/cuda/kernel.hpp"',
      ('include/orderly/cuda_kernel.hpp', '#include <cuda_runtime_api.h>'),
      ('include/orderly/pool.hpp', '#include <cuda/atomic>')],
     ['#include <cstddef>', '// #include <cuda.h>',
      ('include/orderly/cuda_kernel.hpp', '#include "orderly/cuda/kernel.hpp"'),
      ('include/orderly/cuda/kernel.hpp', '#include <cuda/atomic>')]),
    ('the library needs nothing but the system',
     lambda _path, text, _code: included(r'^(boost|doctest|benchmark|nlohmann|CLI)/', text),
     ['#include <boost/lockfree/queue.hpp>'],
     ['#include "orderly/pool.hpp"', '#include <sys/mman.h>']),
    ('no standalone fence, no volatile, no inline assembly',
     words(r'\batomic_thread_fence\b|\b__sync_synchronize\b|\bvolatile\b|\b(?:__)?asm(?:__)?\b'),
     ['std::atomic_thread_fence(seq_cst);', 'volatile int x;', 'asm("pause");', '__asm__("mfence");'],
     ['// volatile', 'const char* text = "asm";', 'int assembly = 0;', "char c = '\"'; int a; char d = '\"';"]),
    ('every atomic operation names its memory order',
     default_orders,
     ['head.load()', 'head->store(1)', 'head . exchange( f(1, 2) )', 'head.fetch_add(1)',
      'head.compare_exchange_weak(seen,\n  next)', 'atomic<int> count{0}; void f() { count++; }',
      'std::atomic<int> count; void f() { count = 3; }', 'atomic<int> count; void f() { count += 3; }',
      'atomic<int> count[3]; void f() { ++count[1]; }'],
     ['head.load(acquire)', 'head.store(f(1, 2), release)', 'std::exchange(a, b)',
      'head.compare_exchange_weak(seen, next, release, relaxed)', 'atomic<int> count = 0; bool b = count == 3;',
      'atomic<int> count{0}; void f() { counted = 3; int count = 3; }']),
    ('atomics, mutexes and pauses come from lib/atomic.hpp',
     second_door,
     ['std::atomic<int> a;', '#include <atomic>', 'a.load(std::memory_order_relaxed)', 'std::mutex m;',
      'std::shared_mutex m;', 'std::condition_variable c;', 'std::this_thread::yield();',
      'std::this_thread::sleep_for(time);'],
     ['atomic<int> a;', 'a.load(relaxed)', '// std::atomic', 'mutex m;', 'std::lock_guard lock(m);', 'yield();']),
]


def breaches(path, text):
    code = code_of(text)
    for name, rule, _broken, _kept in RULES:
        for offset in rule(path, text, code):
            yield text.count('\n', 0, offset) + 1, name


def self_test():
    failures = 0
    for name, _rule, broken, kept in RULES:
        for expected, examples in ((True, broken), (False, kept)):
            for example in examples:
                path, text = ('lib/example.hpp', example) if isinstance(example, str) else example
                found = name in (found_name for _line, found_name in breaches(pathlib.Path(path), text))
                if found != expected:
                    failures += 1
                    print(f'{name}: {"missed" if expected else "wrongly found"}: {example!r}')
    return failures


def check(folders):
    files = [path for folder in folders for path in sorted(pathlib.Path(folder).rglob('*'))
             if path.suffix in ('.h', '.hpp', '.c', '.cpp')]
    if not files:
        print('no files to check')
        return 1
    failures = 0
    for path in files:
        for line, name in breaches(path, path.read_text(encoding='utf-8')):
            failures += 1
            print(f'{path}:{line}: {name}')
    print(f'{len(files)} files, {failures} breaches')
    return failures


if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(1 if (self_test() if sys.argv[1:] == ['--self-test'] else check(sys.argv[1:])) else 0)
