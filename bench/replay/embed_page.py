#!/usr/bin/env python3
"""Writes the C++ source of page_template: page.html with page.css and page.js in place.

    embed_page.py page.html page.css page.js > page_template.cpp
"""

import sys
from pathlib import Path

PIECE = 4000  # bytes to a literal; compilers must take 65536

html, css, js = (Path(name).read_text(encoding="utf-8") for name in sys.argv[1:])
page = html.replace("@STYLE@", css.rstrip("\n")).replace("@SCRIPT@", js.rstrip("\n"))
if "</script" in js or any(page.count(mark) != expected for mark, expected in (("@STYLE@", 0), ("@SCRIPT@", 0),
                                                                               ("@DATA@", 1))):
    sys.exit("page.html must have the marks @STYLE@, @SCRIPT@ and @DATA@ once each, and page.js no end of a script")

print("#include <string_view>\n\nnamespace orderly::bench {\n")
print("extern const std::string_view page_template;\nconst std::string_view page_template =")
text = page.encode()
for start in range(0, len(text), PIECE):
    print('    "' + "".join(f"\\{byte:03o}" for byte in text[start:start + PIECE]) + '"')
print("    ;\n\n}  // namespace orderly::bench")
