#!/usr/bin/env python3
"""extract.py README LANGUAGE NUMBER OUTPUT: writes a complete example of that language, so that it can be compiled.
NUMBER counts from 1; `1/2` says that there are two, so that none is left out."""

import re
import sys

readme, language, number, output = sys.argv[1:]
index, expected = map(int, number.split('/'))
with open(readme, encoding='utf-8') as file:
    blocks = re.findall(rf'^```{re.escape(language)}\n(.*?)^```$', file.read(), re.DOTALL | re.MULTILINE)
if len(blocks) != expected:
    sys.exit(f'{readme}: expected {expected} {language} examples, found {len(blocks)}')
with open(output, 'w', encoding='utf-8') as file:
    file.write(blocks[index - 1])
