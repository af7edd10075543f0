"""When to save is decided for all ranks at once, whatever each of them sees of time and signals: cases of
test_rank_cases.py. No rank hears of another in these loops but through should_save()."""

import os
import random
import signal
import time

from rank_cases import Small, everyone, manager, rank

import perdure


def loop(checkpoints, steps, act=lambda step: None):
    """What each step was decided to be: whether to save, and whether the signal has come."""
    decided = []
    for step in range(1, steps + 1):
        time.sleep(random.uniform(0, 0.002 * (1 + rank())))  # no two are equally fast
        act(step)
        decided.append((checkpoints.should_save(step), checkpoints.preempted))
        if checkpoints.preempted:
            break
    return decided


def signalled(folder, who):
    small = Small()
    before = signal.getsignal(signal.SIGUSR1)
    with manager(folder, save_on_signal=signal.SIGUSR1) as checkpoints:
        own = lambda step: step == 50 and rank() == who and os.kill(os.getpid(), signal.SIGUSR1)  # noqa: E731
        decided = loop(checkpoints, 10_000, own)
        told = everyone(decided)
        assert all(one == told[0] for one in told), [len(one) for one in told]
        assert told[0][-1] == (True, True) and not any(due or preempted for due, preempted in told[0][:-1])
        small.state.step = len(decided)
        checkpoints.save(small.state).wait()
        assert everyone(checkpoints.preempted) == [True] * 3
    found = perdure.list_checkpoints(folder)[0]
    assert (found.step, found.reason) == (len(decided), "preemption")
    assert checkpoints.preempted and signal.getsignal(signal.SIGUSR1) == before


def a_signal_to_the_last_rank(folder):
    signalled(folder, 2)


def a_signal_to_rank_1(folder):
    signalled(folder, 1)


def a_signal_to_rank_0(folder):
    signalled(folder, 0)


def a_signal_to_all(folder):
    signalled(folder, rank())


def by_steps(folder):
    small = Small()
    with manager(folder, save_every=7, keep_last=99) as checkpoints:
        for _ in range(30):
            small.state.step += 1
            if checkpoints.should_save(small.state.step):
                checkpoints.save(small.state).wait()
        assert everyone(checkpoints.all_steps()) == [[7, 14, 21, 28]] * 3
    # They go on with what was restored, and not with what each of them has seen itself.
    with manager(folder, save_every=7) as checkpoints:
        assert checkpoints.restore(small.state, step=14).step == 14
        decided = [checkpoints.should_save(step) for step in range(15, 30)]
        assert everyone(decided) == [[step >= 21 for step in range(15, 30)]] * 3


def by_time(folder):
    """save_every with seconds, and overhead: what the clocks of the ranks say differs."""
    both = perdure.Every(steps=60, seconds=0.3)
    choices = [{"save_every": perdure.Every(seconds=0.05)}, {"overhead": 0.2}, {"save_every": both}]
    for number, options in enumerate(choices):
        small = Small()
        with manager(folder / str(number), **options) as checkpoints:
            saved = []
            for step in range(1, 401):  # that is some of the half seconds for which they agree
                time.sleep(random.uniform(0.002, 0.006) + 0.001 * rank())
                small.state.step = step
                if checkpoints.should_save(step):
                    checkpoints.save(small.state).wait()
                    saved.append(step)
            told = everyone(saved)
            assert told == [saved] * 3 and saved, (options, told)


def skipped_by_all_or_none(folder):
    small = Small()
    with manager(folder, when_busy="skip", keep_last=999) as checkpoints:
        skipped = []
        for _ in range(60):
            small.state.step += 1
            handle = checkpoints.save(small.state)
            skipped.append(handle.skipped)
            if rank() == 1 and not handle.skipped:
                handle.wait()  # it alone could save again at once
        checkpoints.wait()
        told = everyone(skipped)
        assert told == [skipped] * 3, told
        assert not skipped[0] and checkpoints.all_steps() == [i + 1 for i, s in enumerate(skipped) if not s]


CASES = [
    a_signal_to_the_last_rank,
    a_signal_to_rank_1,
    a_signal_to_rank_0,
    a_signal_to_all,
    by_steps,
    by_time,
    skipped_by_all_or_none,
]
