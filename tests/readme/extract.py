#!/usr/bin/env python3
"""extract.py README LANGUAGE OUTPUT: writes the one complete example of that language, so that it can be compiled."""

import re
import sys

readme, language, output = sys.argv[1:]
with open(readme, encoding='utf-8') as file:
    blocks = re.findall(rf'^```{re.escape(language)}\n(.*?)^```$', file.read(), re.DOTALL | re.MULTILINE)
if len(blocks) != 1:
    sys.exit(f'{readme}: expected one {language} example, found {len(blocks)}')
with open(output, 'w', encoding='utf-8') as file:
    file.write(blocks[0])
