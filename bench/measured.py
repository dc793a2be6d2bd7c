"""What the benchmarks wrote with --benchmark_out: every repetition, by what it measured."""

import collections
import json
import statistics

import compare


class Repetitions:
    """Entries of all repetitions, by key; None for one that failed.

    key_of: a benchmark's key, a named tuple, by its name; None: it is none of these. program: that wrote the file.
    """

    def __init__(self, path, key_of, program, failed=lambda entry: entry.get('error_occurred', False)):
        self.repetitions = collections.defaultdict(list)
        self.context = {}
        self.distortions = set()
        if path is None or not path.exists():
            return
        try:
            document = json.loads(path.read_text(encoding='utf-8'))
            self.context = document['context']
            self.distortions = {self.context.get('distorted_by', 'nothing')} - {'nothing'}
            for entry in document['benchmarks']:
                key = key_of(entry['name'])
                if key and entry.get('run_type', 'iteration') == 'iteration':
                    self.repetitions[key].append(None if failed(entry) else entry)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise compare.BadInput(f'{path}: not a JSON file of {program}: {error!r}') from error

    def failed(self, key):
        return None in self.repetitions.get(key, [])

    def median(self, key, field):
        """None: not measured, a repetition failed, or the benchmark does not tell."""
        entries = self.repetitions.get(key, [])
        if not entries or None in entries or any(field not in entry for entry in entries):
            return None
        return statistics.median(float(entry[field]) for entry in entries)

    def keys(self, kind=tuple, /, **wanted):
        """Those of a kind that have these values."""
        return [key for key in self.repetitions
                if isinstance(key, kind) and all(getattr(key, field) == value for field, value in wanted.items())]
