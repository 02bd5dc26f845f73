"""The README says what the repository holds: its examples run, its commands and paths exist."""

import ast
import doctest
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from balms_jax.detection_training import checks as detector_checks
from balms_jax.report.comparison import METHOD_NAMES
from balms_jax.training import checks
from balms_jax.training.methods import METHODS
from balms_jax.training.records import FREE_KEYS
from experiments import numbers

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    'README.md',
    'CONTRIBUTING.md',
    *(f'docs/{p.name}' for p in (ROOT / 'docs').glob('*.md')),
)
GUIDES = ('README.md', 'docs/detection.md', 'docs/results.md')  # What their shell blocks say runs.


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding='utf-8')


README = read('README.md')


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)


def table(text: str) -> list[list[str]]:
    """The cells of the first table, without its two head lines."""
    first = re.findall(r'(?:^\| .* \|\n)+', text, re.MULTILINE)[0]
    rows = re.findall(r'^\| (.*) \|$', first, re.MULTILINE)[2:]
    return [row.split(' | ') for row in rows]


def commands() -> list[list[str]]:
    """Every command of the guides' shell blocks, its lines joined, comments dropped."""
    found = (block for document in GUIDES for block in blocks('bash', read(document)))
    lines = ''.join(found).replace('\\\n', ' ').splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def python_commands() -> dict[str, list[list[str]]]:
    """The arguments of the README's Python commands, by module (`-m NAME`) or script."""
    found: dict[str, list[list[str]]] = {}
    for program, *words in commands():
        if Path(program).name == 'python':
            start = 2 if words[0] == '-m' else 1
            found.setdefault(' '.join(words[:start]), []).append(words[start:])
    return found


# Prints what `--help` of each program prints to a file of its own. What they all import is imported
# once, and a fork of the process is each program's.
PRINT_HELPS = """
import importlib, os, runpy, sys
for name in ('balms_jax.planning.plan', 'experiments.whole_runs'):
    importlib.import_module(name)
folder, *programs = sys.argv[1:]
for index, program in enumerate(programs):
    if not os.fork():
        with open(os.path.join(folder, str(index)), 'w') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        *flags, name = program.split()
        sys.argv = [name, '--help']
        if flags:
            runpy.run_module(name, run_name='__main__', alter_sys=True)
        else:
            runpy.run_path(name, run_name='__main__')
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope='module')
def helps(tmp_path_factory) -> dict[str, str]:
    """What `--help` prints, by program."""
    folder, programs = tmp_path_factory.mktemp('helps'), list(python_commands())
    subprocess.run(
        [sys.executable, '-c', PRINT_HELPS, str(folder), *programs],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return {
        program: (folder / str(index)).read_text(encoding='utf-8')
        for index, program in enumerate(programs)
    }


@pytest.mark.parametrize('document', ['README.md', 'docs/meta_gradients.md', 'docs/detection.md'])
def test_python_examples_give_what_they_show(document, standard_promotion):
    # Someone else's loop does not run under our strict promotion, so neither does the example. The
    # blocks share their names, as lines typed one after another do.
    globs: dict[str, object] = {}
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    for number, block in enumerate(blocks('python', read(document))):
        test = parser.get_doctest(block, globs, f'{document} block {number}', document, 0)
        assert test.examples, 'a python block without an example shows nothing that can be checked'
        report: list[str] = []
        runner.run(test, out=report.append, clear_globs=False)
        assert not runner.failures, ''.join(report)
        globs = test.globs


def test_commands_name_flags_that_exist(helps):
    # A renamed flag would otherwise be found by the first reader who copies the command.
    assert {'-m balms_jax', '-m balms_jax.report', '-m experiments.digits_lt'} <= helps.keys()
    for name, calls in python_commands().items():
        assert 'Traceback' not in helps[name], helps[name]
        for call in calls:
            for flag in (word.split('=')[0] for word in call if word.startswith('--')):
                # `--config.a.b=c` is a key of the config; the next test looks it up.
                # A boolean flag is listed as `--[no]flag`, and `--noflag` turns it off.
                plain = flag.split('.')[0].removeprefix('--')
                forms = rf'--{plain}\b|--\[no\]{plain.removeprefix("no")}\b'
                assert re.search(forms, helps[name]), f'python {name}: no {flag}'


def test_configs_that_commands_name_can_be_trained():
    # Runs what comes before any work: the arguments after the colon, each key set by a flag, and
    # the checks of the recipe.
    calls = python_commands()['-m balms_jax']
    assert len(calls) > 1
    for call in calls:
        file, _, argument = call[call.index('--config') + 1].partition(':')
        if file == 'configs/of_run.py':
            continue  # Of a run that the commands before it make.
        config = runpy.run_path(str(ROOT / file))['get_config'](argument)
        for word in call:
            if match := re.fullmatch(r'--config\.([\w.]+)=(.*)', word):
                key, value = match.groups()
                kind = type(_get(config, key))
                config.update_from_flattened_dict({key: kind(value)})
        of_kind = detector_checks if detector_checks.is_detector(config) else checks
        of_kind.from_config(config)


def _get(config, key):
    for part in key.split('.'):
        config = config[part]
    return config


def test_make_targets_exist():
    # The two commands are the first that a newcomer types.
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    targets = [words[1] for words in commands() if words[0] == 'make']
    assert targets == ['demo', 'test']
    for target in targets:
        assert re.search(rf'^{target}:', makefile, re.MULTILINE)


def test_install_commands_name_extras_that_exist():
    # pip only warns of an unknown extra, and installs too little.
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))
    groups = re.findall(r"'\.\[(.*?)\]'", README)
    named = {extra for group in groups for extra in group.split(',')}
    assert named == project['project']['optional-dependencies'].keys()


@pytest.mark.parametrize('document', DOCUMENTS)
def test_paths_and_links_exist(document):
    # A moved file would leave a dead link.
    text = read(document)
    links = re.findall(r'\]\((?!http|#)([^)#]+)\)', text)
    # `name/…` and `name.ext` in backquotes, where the first folder is one of ours.
    folders = r'(?:balms_jax|configs|docs|experiments|tests|\.ci)/'
    named = re.findall(rf'`({folders}[\w./]*)`', text)
    assert [*links, *named]
    for path in [*links, *named]:
        made_up = 'NAME' in path  # Stands for a file still to be written.
        places = (ROOT / path, (ROOT / document).parent / path)
        assert made_up or any(place.exists() for place in places), f'{document}: no {path}'


def test_anchors_exist():
    # A link to a heading breaks when the heading is reworded.
    headings = re.findall(r'^## (.*)$', README, re.MULTILINE)
    anchors = {re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-') for heading in headings}
    assert set(re.findall(r'\]\(#([^)]+)\)', README)) <= anchors


def test_every_room_is_in_the_table():
    # A file that no row covers is one a newcomer cannot place.
    rooms = [ROOT / row[0].strip('`') for row in table(read('docs/rooms.md'))]
    for file in (ROOT / 'balms_jax').rglob('*.py'):
        covered = any(file == room or room in file.parents for room in rooms)
        assert covered or file.name == '__init__.py', f'no row of the rooms table covers {file}'


def test_imports_point_up_the_table():
    # The table claims it, and a circle would end it. Only names that lie in a row are compared.
    rows = [
        row[0].strip('`').rstrip('/').removesuffix('.py') for row in table(read('docs/rooms.md'))
    ]
    rows = [row.replace('/', '.') for row in rows]

    def row_of(module: str) -> int | None:
        within = [i for i, row in enumerate(rows) if f'{module}.'.startswith(f'{row}.')]
        return within[0] if within else None

    compared = 0
    for file in (ROOT / 'balms_jax').rglob('*.py'):
        importer = '.'.join(file.relative_to(ROOT).with_suffix('').parts)
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f'{node.module}.{name.name}' for name in node.names)]
                here = row_of(importer)
                for there in map(row_of, modules):
                    if here is not None and there is not None:
                        compared += 1
                        assert there <= here, f'{importer} imports {modules} from below'
    assert compared > 50


def test_the_keys_that_may_change_are_those_of_the_code():
    # Who moves a data set must find here that the run goes on; and what is named here must be free.
    (paragraph,) = re.findall(r'^\*\*Resuming\.\*\*.*?\n\n', README, re.MULTILINE | re.DOTALL)
    listed = re.split(r'Only these keys may\s+change:', paragraph)[1]
    assert sorted(re.findall(r'`([\w.]+)`', listed)) == sorted(FREE_KEYS)


def test_methods_table_is_that_of_the_code():
    # So that a new or renamed method cannot be missing here.
    rows = [(row[0].strip('`'), row[1]) for row in table(README.split('\n## Methods\n')[1])]
    assert rows == [(name, method.summary) for name, method in METHODS.items()]


def test_table_of_results_is_that_of_the_kept_page():
    """Whoever makes the page again must not leave old numbers here."""
    kept = json.loads((ROOT / 'experiments/results/ablation/rows.json').read_text())['rows']
    by_method: dict[str, dict[str, dict]] = {}
    for row in kept:
        by_method.setdefault(METHOD_NAMES[row['method']], {})[row['dataset']] = row

    def cells(row: dict | None) -> list[str]:
        if row is None:
            return ['–', '–']
        top1 = numbers.number(row['top1'], row['spread'], digits=1)
        return [top1, f'{row["published"][0]:.1f}']

    wanted = [
        [name, *cells(rows.get('cifar10')), *cells(rows.get('cifar100'))]
        for name, rows in by_method.items()
    ]
    assert table(README.split('\n## Where it stands\n')[1]) == wanted
