"""Mutants of the library: defects planted in its sources, and which of them the tests notice.

All mutants stand in one copy of the sources, each behind a question that an environment variable answers, so that they are
compiled once. The shipped sources know nothing of them.

Named mutants are in mutants.toml. Besides them there are two for each memory order that the library names: relaxed in its
place, and acquire, release or acq_rel in that of seq_cst.
"""

import dataclasses
import pathlib
import re
import shutil
import subprocess
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHOICE = 'ORDERLY_MUTANT'

CHOOSER = '''#pragma once
#include <cstdlib>
namespace orderly_mutants {
static const int chosen = [] {
  const char* const text = std::getenv("%s");
  return text != nullptr ? std::atoi(text) : 0;
}();
/// True while that mutant is chosen; never in what the compiler works out.
constexpr bool is(int number) { return !__builtin_is_constant_evaluated() && chosen == number; }
}  // namespace orderly_mutants
''' % CHOICE

ORDER = re.compile(r'(?<![\w.>])(?:detail::)?(acquire|release|acq_rel|seq_cst)(?=\s*[,)])')
OPERATION = re.compile(r'\b(load|store|exchange|fetch_\w+|compare_exchange_\w+)\s*\(')
COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/', re.DOTALL)
# What seq_cst is without its part in the single total order.
WITHOUT_TOTAL_ORDER = {'load': 'acquire', 'store': 'release'}


@dataclasses.dataclass
class Edit:
    begin: int
    end: int
    text: str  # MUTANT stands for the question


@dataclasses.dataclass
class Mutant:
    name: str
    file: str
    what: str
    kind: str  # 'algorithm' or 'order'
    edits: list
    number: int = 0
    orders: tuple = ()  # of an order mutant: what stands there, and what it becomes


class Misfit(Exception):
    """A mutant that does not fit the sources any more."""


def sources():
    return sorted(path for pattern in ('lib/**/*.hpp', 'lib/**/*.cpp') for path in ROOT.glob(pattern))


def find_once(text, wanted, after, where):
    start = 0
    if after is not None:
        start = text.find(after)
        if start < 0:
            raise Misfit(f'{where}: there is no {after!r}')
        start += len(after)
    begin = text.find(wanted, start)
    if begin < 0:
        raise Misfit(f'{where}: there is no {wanted!r}')
    if after is None and text.find(wanted, begin + 1) >= 0:
        raise Misfit(f'{where}: {wanted!r} is there twice; say what it comes after')
    return begin


def edit_of(entry, text, where, after):
    find = entry['find']
    begin = find_once(text, find, entry.get('after', after), where)
    if 'raw' in entry:
        new = entry['raw']
    elif entry.get('by') == 'statement':
        new = f'if (MUTANT) {{ {entry["replace"]} }} else {{ {find} }}'
    else:
        new = f'(MUTANT ? ({entry["replace"]}) : ({find}))'
    return Edit(begin, begin + len(find), new)


def named(entries, texts):
    for entry in entries:
        where = f'mutants.toml, {entry["name"]}, {entry["file"]}'
        text = texts[entry['file']]
        edits = [edit_of(e, text, where, entry.get('after')) for e in (entry, *entry.get('also', []))]
        yield Mutant(entry['name'], entry['file'], entry['what'], 'algorithm', edits)


def operation_of(code, at):
    """The atomic operation that an argument at `at` belongs to, and the number of the argument; or None."""
    depth, argument = 0, 0
    for i in range(at - 1, -1, -1):
        if code[i] in ')]}':
            depth += 1
        elif code[i] in '([{':
            if depth == 0:
                match = None
                for match in OPERATION.finditer(code, max(0, i - 40), i + 1):
                    pass
                return (match[1], argument) if match and match.end() == i + 1 else None
            depth -= 1
        elif code[i] == ',' and depth == 0:
            argument += 1
        elif code[i] == ';':
            return None
    return None


def orders(texts):
    """Two mutants at most for each order that the library names."""
    seen = {}
    for file, text in texts.items():
        if file == 'lib/atomic.hpp':
            continue
        code = COMMENT.sub(lambda match: re.sub(r'[^\n]', ' ', match[0]), text)
        for match in ORDER.finditer(code):
            found = operation_of(code, match.start())
            if found is None:
                continue
            operation, argument = found
            order = match[1]
            line_begin = text.rfind('\n', 0, match.start()) + 1
            line = text[line_begin:text.find('\n', match.start())]
            statement = ' '.join(code[line_begin:text.find('\n', match.start())].split())
            weaker = ['relaxed']
            if order == 'seq_cst':
                # The order of a failed compare_exchange is a load's.
                failure = operation.startswith('compare_exchange') and argument == 3
                weaker.append('acquire' if failure else WITHOUT_TOTAL_ORDER.get(operation, 'acq_rel'))
            elif order == 'acq_rel':
                weaker += ['acquire', 'release']
            for other in weaker:
                name = f'{pathlib.Path(file).name}: {statement}'
                key = (name, order, other)
                seen[key] = seen.get(key, 0) + 1
                label = f'{pathlib.Path(file).stem}:{order}->{other}'
                edit = Edit(match.start(), match.end(), f'(MUTANT ? ::orderly::detail::{other} : {match[0]})')
                what = f'{statement}' + (f' (the {ordinal(seen[key])})' if seen[key] > 1 else '')
                yield Mutant(f'{label}: {what}', file, what, 'order', [edit], orders=(order, other))
            del line


def ordinal(n):
    return {2: 'second', 3: 'third', 4: 'fourth'}.get(n, f'{n}th')


def load():
    """All mutants, numbered from 1 on, and the texts that they belong to. Throws Misfit."""
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sources()}
    with open(HERE / 'mutants.toml', 'rb') as file:
        entries = tomllib.load(file)['mutant']
    mutants = [*named(entries, texts), *orders(texts)]
    names = [mutant.name for mutant in mutants]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise Misfit(f'two mutants have one name: {", ".join(sorted(twice))}')
    for number, mutant in enumerate(mutants, 1):
        mutant.number = number
    return mutants, texts


def equivalent(mutants):
    """Why each mutant that is argued away is, by name. Throws Misfit for one that is not there, is there twice, or has
    no reason."""
    with open(HERE / 'equivalent.toml', 'rb') as file:
        entries = tomllib.load(file).get('mutant', [])
    names = {mutant.name for mutant in mutants}
    reasons = {}
    for entry in entries:
        name, why = entry.get('name', ''), entry.get('why', '').strip()
        if name not in names:
            raise Misfit(f'equivalent.toml: there is no mutant {name!r}')
        if name in reasons:
            raise Misfit(f'equivalent.toml: {name!r} is there twice')
        if not why:
            raise Misfit(f'equivalent.toml: {name!r} has no reason')
        reasons[name] = why
    return reasons


def unseen(mutants):
    """Why a method cannot notice a mutant, by name and method. Throws Misfit for one that is not there or has no reason."""
    with open(HERE / 'unseen.toml', 'rb') as file:
        entries = tomllib.load(file).get('unseen', [])
    reasons = {mutant.name: {} for mutant in mutants}
    for mutant in mutants:
        if mutant.kind == 'order':
            # Weak orders are no matter of what the processor lets happen.
            for method in ('unit', 'stress'):
                reasons[mutant.name][method] = 'the processor does not let it happen'
        if mutant.orders[:1] == ('seq_cst',) and mutant.orders[1] != 'relaxed':
            reasons[mutant.name]['tsan'] = 'it takes seq_cst for acquire and release'
    for entry in entries:
        why = entry.get('why', '').strip()
        if not why:
            raise Misfit(f'unseen.toml: {entry} has no reason')
        for pattern in entry['mutants']:
            # A whole name is that mutant's alone, also where others begin with it.
            named = [pattern] if pattern in reasons else [name for name in reasons if name.startswith(pattern)]
            if not named:
                raise Misfit(f'unseen.toml: there is no mutant {pattern!r}')
            for name in named:
                for method in entry['by']:
                    reasons[name].setdefault(method, why)
    return reasons


def planted(mutants, texts):
    """The texts with every mutant in place. Edits may lie inside each other: the inner one is planted first."""
    result = {}
    for file, text in texts.items():
        edits = [(edit, mutant.number) for mutant in mutants if mutant.file == file for edit in mutant.edits]
        result[file] = apply(text, edits) if edits else text
    return result


def apply(text, edits):
    """Layers: edits of one layer do not overlap, and each is a choice between the text below and its own."""
    groups = []
    for edit, number in sorted(edits, key=lambda each: (each[0].begin, -each[0].end)):
        if groups and edit.begin < groups[-1][1]:
            groups[-1][1] = max(groups[-1][1], edit.end)
            groups[-1][2].append((edit, number))
        else:
            groups.append([edit.begin, edit.end, [(edit, number)]])
    out, at = [], 0
    for begin, end, members in groups:
        out.append(text[at:begin])
        out.append(choose(text, begin, end, members))
        at = end
    out.append(text[at:])
    return ''.join(out)


def choose(text, begin, end, members):
    question = lambda number: f'::orderly_mutants::is({number})'
    if len(members) == 1:
        edit, number = members[0]
        return edit.text.replace('MUTANT', question(number))
    outer = [each for each in members if each[0].begin == begin and each[0].end == end]
    inner = [each for each in members if each not in outer]
    below = [(Edit(e.begin - begin, e.end - begin, e.text), n) for e, n in inner]
    body = text[begin:end]
    if not outer:
        raise Misfit(f'mutants {[n for _, n in members]} overlap, and none holds the others: {body!r}')
    changed = apply(body, below) if below else body
    for edit, number in outer:
        new = edit.text
        if body not in new:
            raise Misfit(f'mutant {number} is not the only one of {body!r}: it must leave the text in one piece')
        head, tail = new.rsplit(body, 1)
        changed = head.replace('MUTANT', question(number)) + changed + tail.replace('MUTANT', question(number))
    return changed


def copy_tree(to, but):
    """The tracked and new files of the project, but for what git ignores, and for `but`."""
    listed = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout.split('\n')
    for name in filter(None, listed):
        target = to / name
        if name in but or not (ROOT / name).is_file():
            continue
        if target.exists() and target.read_bytes() == (ROOT / name).read_bytes():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)  # as new, for what is compiled of it


def plant(to):
    """A copy of the project with all mutants planted. Returns them. Files that need not change keep their times."""
    mutants, texts = load()
    changed = planted(mutants, texts)
    copy_tree(to, changed)
    changed['lib/mutants.hpp'] = CHOOSER
    for file, text in changed.items():
        target = to / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
    return mutants
