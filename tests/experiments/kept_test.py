"""Trying an experiment must not replace its kept results."""

import json
from pathlib import Path

from experiments import kept
from experiments.kept import RESULTS, page_folder


def test_only_the_cpu_scale_goes_where_the_kept_page_is(tmp_path):
    """A newcomer's smoke run would otherwise leave a changed checkout and a worse page."""
    assert page_folder('ablation', 'cpu', None) == RESULTS / 'ablation'
    assert RESULTS not in page_folder('ablation', 'smoke', None).parents
    assert page_folder('ablation', 'paper', None) == RESULTS / 'ablation_paper'
    assert page_folder('ablation', 'cpu', tmp_path) == Path(tmp_path)


def test_a_record_is_a_run_without_its_weight(tmp_path):
    """Pages read it as they read the run: all but most steps, and no paths."""
    run, record = tmp_path / 'run', tmp_path / 'record'
    (run / 'checkpoints').mkdir(parents=True)
    config = {'seed': 3, 'data': {'name': 'cifar10', 'data_dir': '/home/someone/data'}}
    facts = {'stages': [{'name': 'stage_1', 'steps': 350}]}
    for name, content in (('config', config), ('run', facts), ('costs', [[1.0]])):
        (run / f'{name}.json').write_text(json.dumps(content))
    lines = [{'kind': 'train', 'stage': 'stage_1', 'step': s, 'loss': 1.0} for s in range(1, 351)]
    lines += [{'kind': 'rates', 'stage': 'stage_1', 'step': s} for s in (7, 20, 345, 350)]
    lines.append({'kind': 'evaluation', 'stage': 'stage_1', 'step': 7})
    (run / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    kept.keep_run(run, record)
    kept.keep_run(run, record)
    stayed = [json.loads(line) for line in (record / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in stayed] == [100, 200, *range(251, 351), 20, 350, 7]
    assert json.loads((record / 'costs.json').read_text()) == [[1.0]]
    assert '/home' not in (record / 'config.json').read_text()
    assert json.loads((record / 'config.json').read_text())['seed'] == 3
    assert {path.suffix for path in record.iterdir()} == {'.json', '.jsonl'}


def test_rows_tell_their_command_and_commit(tmp_path):
    """A number without them cannot be made again."""
    told = json.loads(kept.write_rows(tmp_path, [{'top-1 %': '50.0'}]).read_text())
    assert told['rows'] == [{'top-1 %': '50.0'}]
    assert told['command'].startswith('python ')
    assert told['commit'] == 'unknown' or len(told['commit'].removesuffix('-dirty')) == 40
