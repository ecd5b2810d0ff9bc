"""Who may import whom (style.md 1): read from the import statements."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'basicsr'
FILES = sorted(PACKAGE.rglob('*.py'))
ROOMS = ('archs', 'data', 'losses', 'metrics', 'models')
TALKATIVE = {
    '__main__.py',
    'utils/cli.py',
    'dry_run.py',
    'train.py',
    'test.py',
}  # commands: their output is what they are for
COMMON = {
    'torch',
    'numpy',
    'einops',
    'pydantic',
    'yaml',
    'tqdm',
    'safetensors',
    'filelock',
    'PIL',
    'cv2',
    'scipy',
    'basicsr',
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    """The package folder that a file lies in; '' at the top."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ''


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported whenever the file is) for each import of a file."""

    def walk(node: ast.AST, always: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, always) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f'{path}: imports are written in full'
                assert child.module
                yield from ((f'{child.module}.{alias.name}', always) for alias in child.names)
            elif isinstance(child, ast.If) and ast.unparse(child.test) == 'TYPE_CHECKING':
                continue
            else:
                yield from walk(
                    child, always and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                )

    return walk(ast.parse(path.read_text(encoding='utf-8')), True)


def room_imported(module: str) -> str | None:
    """The room of ours that a module belongs to: '' for files at the top, None for what is not ours."""
    parts = module.split('.')
    if parts[0] != 'basicsr':
        return None
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ''


@pytest.mark.parametrize('path', FILES, ids=name_of)
def test_rooms_know_only_utils_and_themselves(path):
    """They reach one another through the registries; the files at the top see everything."""
    room = room_of(path)
    if room == '':
        return
    allowed = {'utils', room}
    wrong = [module for module, _ in imports(path) if room_imported(module) not in (None, *allowed)]
    assert not wrong, f'{room} may import {" and ".join(sorted(allowed))} of ours, not {", ".join(wrong)}'


@pytest.mark.parametrize('path', FILES, ids=name_of)
def test_a_file_needs_only_common_packages_to_be_imported(path):
    """Others, heavy or optional, are imported by the function that uses them; accelerate by the files at the top."""
    common = COMMON | ({'accelerate'} if room_of(path) == '' else set())
    modules = {module.split('.')[0] for module, always in imports(path) if always} - set(sys.stdlib_module_names)
    assert modules <= common


def test_only_the_image_files_decode_and_encode_pictures():
    known = re.compile(r'cv2\.(imread|imwrite|imdecode|imencode)|Image\.open|\.COLOR_')
    users = {name_of(path) for path in FILES if known.search(path.read_text(encoding='utf-8'))}
    assert users - {'metrics/niqe.py'} <= {'utils/image.py', 'utils/image_codec.py', 'utils/picture.py'}


def test_accelerate_is_known_to_the_files_at_the_top_only():
    users = {
        room_of(path) for path in FILES if any(module.split('.')[0] == 'accelerate' for module, _ in imports(path))
    }
    assert users == {''}


@pytest.mark.parametrize('path', FILES, ids=name_of)
def test_a_file_fits_in_the_head(path):
    assert len(path.read_text(encoding='utf-8').splitlines()) <= 400


@pytest.mark.parametrize('path', FILES, ids=name_of)
def test_the_package_logs_and_does_not_print(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))) if isinstance(node, ast.Call)]
    printing = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == 'print']
    assert not printing or name_of(path) in TALKATIVE


@pytest.mark.parametrize('path', FILES, ids=name_of)
def test_code_never_runs_text(path):
    """No eval, no exec, no pickle that executes, no YAML loader but the safe one."""
    text = path.read_text(encoding='utf-8')
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in (
                'eval',
                'exec',
                'pickle.load',
                'pickle.loads',
                'os.system',
                'yaml.load',
                'yaml.unsafe_load',
            )
            if called == 'torch.load':
                assert 'weights_only=True' in ast.unparse(node)
            assert not any(keyword.arg == 'shell' for keyword in node.keywords)


def test_archs_know_no_optimizers_files_or_options():
    for path in sorted((PACKAGE / 'archs').rglob('*.py')):
        modules = {module for module, _ in imports(path)}
        assert not {m for m in modules if m.startswith(('basicsr.utils.options', 'basicsr.utils.image', 'torch.optim'))}


def test_importing_the_package_loads_nothing():
    code = ("import sys; before = set(sys.modules); import basicsr; new = set(sys.modules) - before; "
            "print(sorted(m for m in new if m.split('.')[0] not in sys.stdlib_module_names))")  # fmt: skip
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['basicsr']"


def test_asking_for_one_network_does_not_import_the_others():
    code = ("import sys; from basicsr.utils.registry import ARCH_REGISTRY; ARCH_REGISTRY.get('ATD'); "
            "print([m for m in sys.modules if m.startswith('basicsr.archs.') and m.endswith('_arch')])")  # fmt: skip
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['basicsr.archs.atd_arch']"
