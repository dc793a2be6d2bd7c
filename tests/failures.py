#!/usr/bin/env python3
"""Names the tests that failed, and what each printed last, so that the end of a long log says what to look at.
failures.py LOG...: Meson's testlog.json, pytest's JUnit file; logs that are not there are passed over."""

import json
import sys
import xml.etree.ElementTree

LINES = 25
PASSED = ('OK', 'SKIP', 'EXPECTEDFAIL')


def of_meson(log):
    for line in log:
        test = json.loads(line)
        if test['result'] not in PASSED:
            yield f"{test['name']} ({test['result']})", test.get('stdout', '') + test.get('stderr', '')


def of_pytest(log):
    for case in xml.etree.ElementTree.parse(log).getroot().iter('testcase'):
        reasons = [part.text or '' for part in case if part.tag in ('failure', 'error')]
        if reasons:
            yield f"{case.get('classname')}.{case.get('name')}", '\n'.join(reasons)


def main(paths):
    for path in paths:
        try:
            with open(path, encoding='utf-8', errors='replace') as log:
                failures = list((of_meson if path.endswith('.json') else of_pytest)(log))
        except (OSError, ValueError, xml.etree.ElementTree.ParseError):
            continue
        for name, output in failures:
            print(f'\nfailed: {name}')
            for line in output.rstrip().splitlines()[-LINES:]:
                print(f'  {line}')


if __name__ == '__main__':
    main(sys.argv[1:])
