import subprocess
import sys

import pytest

from basicsr.utils.optional import optional
from basicsr.utils.registry import UserError


def test_a_package_that_is_there_is_imported():
    assert optional('json.decoder', 's3diff').JSONDecoder is __import__('json').JSONDecoder


@pytest.mark.parametrize('module', ['no_such_package', 'no_such_package.part'])
def test_a_missing_package_is_named_with_what_installs_it(module):
    with pytest.raises(UserError, match=r"^S3Diff needs the package no_such_package: pip install -e '\.\[s3diff\]' in"):
        optional(module, 's3diff')


def test_what_a_package_itself_lacks_is_not_taken_for_the_package(tmp_path, monkeypatch):
    (tmp_path / 'half_installed.py').write_text('import no_such_package')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match='no_such_package'):
        optional('half_installed', 's3diff')


def test_the_network_is_listed_and_its_options_checked_without_the_package():
    code = (
        'import sys\n'
        'sys.modules["diffusers"] = sys.modules["transformers"] = sys.modules["timm"] = None\n'
        'from basicsr.utils.registry import ARCH_REGISTRY, UserError\n'
        'entry = ARCH_REGISTRY.get("S3Diff")\n'
        'try:\n'
        '    ARCH_REGISTRY.build({"type": "S3Diff"})\n'
        'except UserError as error:\n'
        '    print(error)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "S3Diff needs the package diffusers: pip install -e '.[s3diff]' in the checkout", (
        done.stderr
    )
