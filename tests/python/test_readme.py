"""README's examples in Python print what it says."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

README = (pathlib.Path(__file__).parent.parent.parent / 'README.md').read_text(encoding='utf-8')
EXAMPLES = re.findall(r'```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```', README, re.DOTALL)


def test_there_are_examples():
    assert len(EXAMPLES) == README.count('```python') == 3


@pytest.mark.parametrize('program, printed', EXAMPLES)
def test_example(program, printed, tmp_path):
    if 'torch' in program:
        pytest.importorskip('torch')
        import orderly.torch

        try:
            orderly.torch.build()
        except RuntimeError as error:
            pytest.skip(str(error).splitlines()[0])
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False, cwd=tmp_path,
                          env=dict(os.environ, CUDA_VISIBLE_DEVICES=''), timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed
