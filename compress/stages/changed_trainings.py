"""A run that goes on with other train data, another loss, optimizer or training loop: its networks are trained anew."""

from __future__ import annotations

from compress.baseline.contexts import Context

_PARTS = {"train": "train data", "objective": "loss", "finetune": "training loop", "optimizer": "optimizer"}


def train_anew(context: Context) -> str | None:
    """Ask every trial again whose network was trained otherwise; gives a line that says so, None where none was.

    What was trained before stays in the cache: with the old loss, the old candidates are there again at once.
    """
    training, run = context.training, context.run
    if training is None:
        return None
    whole = training.key.of_trainings()
    now = {name: whole[name] for name in _PARTS}
    before = run.state.facts.trained_with
    if before == now:
        return None
    changed = [] if before is None else [what for name, what in _PARTS.items() if before.get(name) != now[name]]
    again = [trial.number for trial in run.state.trials.values() if changed and trial.state in ("finished", "failed")]
    for number in again:
        run.record.append("retry", trial=number)
    # Last: a call that is killed before this asks those trials again.
    run.record.note("trained_with", now)
    if not again:
        return None
    return f"the task has changed ({', '.join(changed)}): its {len(again)} trials are trained anew"
