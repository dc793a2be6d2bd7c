"""The end of the interpreter: tensors, pools, threads and streams that are alive then, in any order."""

import os
import subprocess
import sys
import textwrap

import pytest


def run(program, *, ends=0, timeout=120):
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(program)], capture_output=True, text=True,
                          timeout=timeout, check=False)
    assert done.returncode == ends, done.stderr
    assert done.stderr == ''
    return done.stdout


ALIVE = {
    'globals': 'tensor = pool.empty(1000)',
    'globals, the pool last': 'a_tensor = pool.empty(1000); z_pool = pool; del pool',
    'a cycle': 'cycle = [pool.empty(1000)]; cycle.append(cycle); del cycle',
    'a cycle of a class': '''
class Node: pass
node = Node(); node.tensor = pool.empty(1000); node.self = node; node.pool = pool
''',
    'a view': 'view = memoryview(pool.empty(1000)); del pool',
    'arrays': 'import numpy; array = numpy.asarray(pool.empty(9)); other = numpy.from_dlpack(pool.empty(9)); del pool',
    'a capsule': 'capsule = pool.empty(1000).__dlpack__()',
    'the module builtins': 'import builtins; builtins.kept = pool.empty(1000)',
    'the module sys': 'import sys; sys.kept = pool.empty(1000)',
    'a destructor that allocates': '''
class Node:
    def __init__(self): self.pool = pool
    def __del__(self): self.pool.empty(100_000_0)
node = Node()
''',
    'a function of atexit': 'import atexit; atexit.register(lambda tensor=pool.empty(1000): pool.free_tensor(tensor))',
    'handlers': '''
other = orderly.MemoryPool(capacity=1 << 20, on_bad_free=print, on_out_of_memory=lambda size: other.trim())
tensor = other.empty(10)
''',
    'a thread-local': 'import threading; local = threading.local(); local.tensor = pool.empty(10)',
}


@pytest.mark.parametrize('how', ALIVE)
@pytest.mark.parametrize('streams', [False, True], ids=['plain', 'streams'])
def test_what_is_alive_at_exit(how, streams):
    argument = ', streams=orderly.SoftwareDevice()' if streams else ''
    run(f'import orderly\npool = orderly.MemoryPool(capacity=64 << 20{argument})\n{textwrap.dedent(ALIVE[how])}')


@pytest.mark.parametrize('size', ['1000', '3 << 20'])
def test_daemon_threads_that_allocate_until_the_end(size):
    for _ in range(3):
        run(f'''
            import orderly, threading, time
            pool = orderly.MemoryPool(capacity=256 << 20)
            def work():
                while True:
                    pool.empty({size}, 'uint8')
            class Slow:  # so that the threads want the interpreter while it goes
                def __del__(self, now=time.monotonic):
                    end = now() + 0.1
                    while now() < end:
                        pass
            slow = Slow()
            for _ in range(4):
                threading.Thread(target=work, daemon=True).start()
            time.sleep(0.05)
        ''')


def test_a_daemon_thread_that_waits_in_a_handler():
    run('''
        import orderly, threading, time
        entered = threading.Event()
        def handler(size):
            entered.set()
            time.sleep(1000)
        pool = orderly.MemoryPool(capacity=1 << 20, on_out_of_memory=handler)
        tensor = pool.empty(1 << 20, 'uint8')
        threading.Thread(target=lambda: pool.empty(1000), daemon=True).start()
        assert entered.wait(60)
    ''')


def test_work_in_streams_is_done_before_the_interpreter_goes():
    assert run('''
        import orderly, time
        device = orderly.SoftwareDevice()
        pool = orderly.MemoryPool(capacity=64 << 20, streams=device)
        stream = orderly.SoftwareStream(device)
        tensor = pool.empty(1000, 'uint8', stream=stream)
        def work():
            time.sleep(0.2)
            memoryview(tensor)[:] = b'x' * 1000
            print(bytes(memoryview(tensor)[:3]))
        stream.enqueue(work)
    ''') == "b'xxx'\n"


def test_an_exception_that_ends_the_program():
    program = 'import orderly\npool = orderly.MemoryPool()\ntensor = pool.empty(9)\n1 / 0'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr.endswith('ZeroDivisionError: division by zero\n')


def test_sys_exit_in_a_thread_and_os_exit():
    run('''
        import orderly, sys, threading
        pool = orderly.MemoryPool(capacity=64 << 20)
        def work():
            tensor = pool.empty(1000)
            sys.exit()
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert pool.stats()['requested'] == 0
    ''')
    run('import orderly, os\npool = orderly.MemoryPool()\ntensor = pool.empty(9)\nos._exit(3)', ends=3)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_a_forked_child_goes_on_with_the_pool():
    assert run('''
        import orderly, os, sys
        pool = orderly.MemoryPool(capacity=64 << 20)
        tensor = pool.empty(1000, 'uint8')
        memoryview(tensor)[0] = 7
        child = os.fork()
        if child == 0:
            assert memoryview(tensor)[0] == 7
            memoryview(tensor)[0] = 8
            del tensor
            pool.empty(1 << 20)
            assert pool.stats()['requested'] == 0
            sys.exit(5)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), memoryview(tensor)[0])
    ''') == '5 7\n'


def test_an_interrupt_while_a_call_waits_is_raised_after_it():
    program = '''
        import orderly, os, signal, threading, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background starts with it ignored
        device = orderly.SoftwareDevice()
        stream = orderly.SoftwareStream(device)
        stream.enqueue(lambda: time.sleep(0.3))
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            stream.synchronize()
            time.sleep(60)
        except KeyboardInterrupt:
            print('interrupted')
    '''
    assert run(program) == 'interrupted\n'
