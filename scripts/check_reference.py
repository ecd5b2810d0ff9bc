"""Run reference cases of the published implementations: python scripts/check_reference.py DIR...

Each DIR is a case's JSON, or a folder that is searched for them. Prints one line a case: its name, the worst error in
units of the case's tolerance, and pass, FAIL or unsupported; the last line is `N passed, M failed`.
Exit status 1 if any case failed or is not supported.
"""

import argparse
import sys
from pathlib import Path

# This folder holds the package `reference`; the checkout's `basicsr` must win over an installed one.
sys.path[:1] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import torch  # noqa: E402
from reference import checkers  # noqa: E402, F401 (it registers them)
from reference.case import load  # noqa: E402
from reference.checking import Verdict, judge  # noqa: E402


def main(paths: list[str]) -> int:
    """Check the cases below `paths`; returns the exit status."""
    torch.set_num_threads(1)  # as recorded: float32 sums depend on it, and five steps of Adam enlarge the difference
    files = [file for path in paths for file in case_files(Path(path))]
    if not files:
        print(f'check_reference: no case file (*.json) in {", ".join(paths)}', file=sys.stderr)
        return 1
    passed = 0
    for file in files:
        name, verdict = checked(file)
        passed += verdict.status == 'pass'
        print(f'{name:48} {verdict.error:9.3g}  {verdict.status:11} {verdict.note}'.rstrip(), flush=True)
    print(f'{passed} passed, {len(files) - passed} failed')
    return 0 if passed == len(files) else 1


def case_files(path: Path) -> list[Path]:
    """The JSON at `path`, or all below it, sorted."""
    if not path.exists():
        raise SystemExit(f'check_reference: {path} does not exist')
    return [path] if path.is_file() else sorted(path.rglob('*.json'))


def checked(file: Path) -> tuple[str, Verdict]:
    """The name and the verdict of the case in a file, which may turn out not to be one."""
    try:
        case = load(file)
        return case.name, judge(case)
    except (OSError, ValueError, KeyError) as error:
        return str(file), Verdict('FAIL', note=f'not a case: {type(error).__name__}: {error}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('paths', nargs='+', metavar='DIR', help='a case file or a folder of them')
    sys.exit(main(parser.parse_args().paths))
