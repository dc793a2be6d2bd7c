"""The corpus of bad input, which C and C++ go through too (tests/bad_input/corpus.json, where it is explained)."""

import concurrent.futures
import ctypes
import json
import mmap
import pathlib

import pytest

import orderly

CORPUS = json.loads((pathlib.Path(__file__).parent.parent / 'bad_input/corpus.json').read_text())['cases']
MINE = [case for case in CORPUS if 'python' in case.get('only', ['python'])]
CAPACITY = 8 << 20
WORDS = {
    'double_free': 'double free: the block is free already',
    'interior_pointer': 'the pointer lies inside a live block',
    'foreign_pointer': 'foreign pointer: no pool of this process',
    'misaligned_pointer': 'misaligned pointer',
    'size_mismatch': 'the size given rounds to another class',
    'wrong_pool': 'the pointer belongs to another pool',
    'pool_gone': 'the pool is gone',
    'stale_handle': 'stale handle',
}
STATIC = ctypes.create_string_buffer(512)
HEAP = ctypes.create_string_buffer(64)


def size_of(value):
    """'2 MiB - 5', from left to right."""
    if isinstance(value, int):
        return value
    total, term, operation = 0, 0, '+'

    def apply():
        return {'+': total + term, '-': total - term, '/': total // term if term else 0}[operation]

    for word in value.split():
        if word in '+-/':
            total, operation = apply(), word
        elif word == 'SIZE_MAX':
            term = 2**64 - 1
        elif word in ('KiB', 'MiB', 'GiB'):
            term <<= {'K': 10, 'M': 20, 'G': 30}[word[0]]
        else:
            term = int(word)
    return apply()


def buffer_at_odd_page(size):
    """Memory aligned to one page and no more, wherever the system places it: a case asks for more."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, size + page)
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    start = 0 if at // page % 2 else page
    return memoryview(memory)[start:start + size]


class Scene:
    """One case."""

    def __init__(self, case):
        self.case = case
        self.kind = case.get('pool', 'host')
        self.pools, self.blocks, self.live, self.tried = {}, {}, {}, 0
        self.gone = False
        self.other = None
        self.options = {key: size_of(value) for key, value in case.get('options', {}).items() if key != 'slack'}
        self.options.setdefault('capacity', CAPACITY)
        if 'slack' in case.get('options', {}):
            self.options['slack'] = float(case['options']['slack'])
        if self.kind == 'streams':
            self.device = orderly.SoftwareDevice('lazy')
            self.streams = {name: orderly.SoftwareStream(self.device) for name in 'st'}
        for step in case.get('before', []):
            assert self.outcome(step)[0] == 'none' or step.get('may_refuse'), step
            self.forget(step)

    def pool(self, name='tested'):
        if name not in self.pools:
            if self.kind == 'streams':
                self.pools[name] = orderly.MemoryPool(streams=self.device, **self.options)
            elif self.kind == 'fixed_buffer':
                self.pools[name] = orderly.BuddyAllocator(buffer=buffer_at_odd_page(CAPACITY), **self.options)
            else:
                self.pools[name] = orderly.BuddyAllocator(**self.options)
        return self.pools[name]

    def stream(self, step):
        return {'stream': self.streams[step['stream']]} if self.kind == 'streams' else {}

    def outcome(self, step):
        """The code and message that an operation comes to."""
        result = []

        def run():
            try:
                self.run(step)
                result.append(('none', ''))
            except orderly.BadFree as refused:
                assert refused.pointer == self.tried
                result.append((refused.code, str(refused)))
            except orderly.OutOfMemory as refused:
                result.append(('out_of_memory', str(refused)))
            except ValueError as refused:
                result.append(('invalid_argument', str(refused)))

        if step.get('thread'):
            # One that stays: join() returns before a thread has given back what it cached.
            self.other = self.other or concurrent.futures.ThreadPoolExecutor(1)
            self.other.submit(run).result()
        else:
            run()
        return result[0]

    def run(self, step):
        pool = self.pool(step.get('pool', 'tested')) if 'create' not in step else None
        if 'create' in step:
            self.create(step)
        elif 'allocate' in step:
            self.allocate(pool, step)
        elif 'free' in step:
            self.free(pool, step)
        elif 'record_stream' in step:
            pool.record_stream(self.address(step, 'record_stream'), **self.stream(step))
        elif 'defragment' in step:
            self.pool(step['defragment']).defragment()
        elif 'trim' in step:
            self.pool(step['trim']).trim(size_of(step['bytes']))
        elif 'begin_capture' in step:
            pool.begin_capture(self.streams[step['begin_capture']])
        elif 'end_capture' in step:
            pool.end_capture(self.streams[step['end_capture']])
        elif 'release_stream' in step:
            pool.release_stream(self.streams[step['release_stream']])
        elif 'destroy' in step:
            self.gone |= step['destroy'] == 'tested'
            self.pool(step['destroy']).close()
        else:
            raise AssertionError(step)

    def create(self, step):
        options = {key: size_of(value) for key, value in step['create'].items() if key != 'slack'}
        if 'slack' in step['create']:
            options['slack'] = float(step['create']['slack'])
        source = step.get('source', '')
        memory = mmap.mmap(-1, 1 << 20)
        if source == 'streams':
            orderly.MemoryPool(streams=orderly.SoftwareDevice('lazy'), seal_bytes=0, **options)
        elif source == 'small buffer':
            orderly.BuddyAllocator(buffer=memoryview(memory)[:-1], **options)
        elif source == 'misaligned buffer':
            orderly.BuddyAllocator(buffer=memoryview(memory)[8:], **options)
        elif source == 'buffer':
            orderly.BuddyAllocator(buffer=memory, **options)
        else:
            assert not source
            orderly.BuddyAllocator(**options)

    def allocate(self, pool, step):
        arguments = {'bytes': size_of(step['bytes']), 'alignment': size_of(step.get('alignment', 1)),
                     **self.stream(step)}
        if step.get('handle'):
            got = pool.allocate_checked(**arguments)
        else:
            got = pool.allocate(**arguments), 0
        name = step['allocate']
        self.blocks[name] = got
        if 'at' in step:
            assert got[0] == self.blocks[step['at']][0]
        if step.get('pool', 'tested') == 'tested':
            self.live[name] = got, arguments['bytes'], self.stream(step)

    def address(self, step, key):
        what = step[key]
        known = {
            'static memory': ctypes.addressof(STATIC), 'heap': ctypes.addressof(HEAP), 'null': 0,
            'stack': id(self) & ~7, 'code': ctypes.cast(ctypes.pythonapi.Py_Initialize, ctypes.c_void_p).value,
        }
        if what in self.blocks:
            start = self.blocks[what][0]
        else:
            start = known[what] if what in known else int(what, 16)
        self.tried = (start + size_of(step.get('offset', 0))) % 2**64
        return self.tried

    def free(self, pool, step):
        address, size = self.address(step, 'free'), size_of(step.get('bytes', 0))
        if step.get('handle') or 'generation' in step:
            generation = step.get('generation', self.blocks.get(step['free'], (0, 0))[1])
            pool.free_checked(address, generation, size, **self.stream(step))
        else:
            pool.free(address, size, **self.stream(step))

    def forget(self, step):
        if 'free' in step and not step.get('offset'):
            self.live.pop(step['free'], None)

    def books(self):
        if self.gone:
            return None
        books = self.pool().snapshot()
        refusals = books['stats'].pop('bad_frees'), books['stats'].pop('failed')
        for figure in ('streams', 'held', 'events_recorded', 'waits', 'queries'):
            books['stats'].pop(figure, None)
        return books, refusals

    def check(self):
        attempt, expected = self.case['try'], self.case['error']
        expected = expected['python'] if isinstance(expected, dict) else expected
        is_about_pools = 'create' in attempt
        before = None if is_about_pools else self.books()
        code, message = self.outcome(attempt)
        assert code == expected, message
        if code != 'none':
            self.check_words(attempt, expected, message)
        if not is_about_pools and not self.gone and expected != 'none':
            after = self.books()
            assert after[0] == before[0]
            counted = 'free' in attempt and expected not in ('pool_gone', 'invalid_argument')
            assert after[1][0] - before[1][0] == counted
            assert after[1][1] - before[1][1] == (expected == 'out_of_memory')
        self.live.pop(self.case.get('frees'), None)
        self.check_usable()

    def check_words(self, attempt, expected, message):
        words = []
        if 'free' in attempt:
            words += [WORDS[expected], hex(self.tried)] if expected in WORDS else []
            words += [str(size_of(attempt['bytes']))] if size_of(attempt.get('bytes', 0)) else []
        if 'allocate' in attempt and expected == 'out_of_memory':
            words += [str(size_of(attempt['bytes']))]
        if 'block' in self.case:
            words += [hex(self.blocks[self.case['block']][0]), 'live']
        for each in self.case.get('says', []):
            values = attempt.get('create', attempt)
            words.append(str(size_of(values[each[1:-1]])) if each.startswith('{') else each)
        for word in words:
            if 'record_stream' not in attempt:
                assert word in message

    def check_usable(self):
        """What is live can be freed, and then the whole pool allocated once and freed again."""
        for step in self.case.get('after', []):
            assert self.outcome(step)[0] == 'none' or step.get('may_refuse')
        pool = self.pool('a new one' if self.gone else 'tested')
        stream = {'stream': self.streams['s']} if self.kind == 'streams' else {}
        if not self.gone:
            for (address, generation), size, _ in self.live.values():
                if generation:
                    pool.free_checked(address, generation, size or 1, **stream)
                else:
                    pool.free(address, size or 1, **stream)
        if self.kind == 'streams':
            assert pool.synchronize()
        refused = pool.stats()['bad_frees']
        chunk, blocks = 64 << 10, set()
        while True:
            try:
                address = pool.allocate(chunk, **stream)
            except orderly.OutOfMemory:
                break
            assert address not in blocks
            blocks.add(address)
        assert len(blocks) == self.options.get('limit', self.options['capacity']) // chunk
        for address in blocks:
            pool.free(address, chunk, **stream)
        stats = pool.stats()
        assert (stats['bad_frees'], stats['requested']) == (refused, 0)
        assert stats['allocations'] == stats['frees']


@pytest.mark.parametrize('case', MINE, ids=lambda case: case['name'])
def test_case(case):
    Scene(case).check()


def test_there_are_as_many_as_in_other_languages():
    assert len(MINE) >= 150
    assert not [case['name'] for case in CORPUS if 'only' not in case and case not in MINE]
