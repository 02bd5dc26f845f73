"""How far a run is: images per second are those of training alone."""

from balms_jax.training import progress


def test_what_was_spent_on_no_step_does_not_count(monkeypatch, capsys):
    """The test of a detector takes minutes: with it, the time left would be far too long."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: clock[0])
    with progress.Progress(title='softmax').stage('stage_1', 100, 0, 8) as show:
        show(1, 0.0)
        clock[0] = 110.0  # Ten seconds for ten steps, and a test of a hundred.
        show(11, 100.0)
    assert capsys.readouterr().out.strip() == (
        'softmax stage_1: step 11/100, 8 images/s, 89 s left'
    )


def test_no_rate_is_told_of_a_first_step(capsys):
    """It was compiled in that time."""
    with progress.Progress().stage('stage_1', 1, 0, 8) as show:
        show(1, 0.0)
    assert capsys.readouterr().out.strip() == 'stage_1: step 1/1, 0 images/s, time left unknown'
