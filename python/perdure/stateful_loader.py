"""torchdata's StatefulDataLoader as part of a TrainingState.

It gives back its own place, but not what making an iterator takes from generators: the resumed run makes one more
than the run that went on. Here that is not seen.
"""

from .rng import host_state, put_host_state

_GENERATOR = "perdure_generator"  # beside the loader's own keys, which ignores it


def is_stateful_loader(thing) -> bool:
    """By name: torchdata need not be installed."""
    classes = type(thing).__mro__
    return any(c.__name__ == "StatefulDataLoader" and c.__module__.startswith("torchdata.") for c in classes)


def stateful_loader_functions(loader):
    """(get, put) for a StatefulDataLoader; None for anything else."""
    if not is_stateful_loader(loader):
        return None
    return lambda: _state(loader), lambda state: _put(loader, state)


def _state(loader) -> dict:
    state = loader.state_dict()  # where no iteration has begun, this begins one
    own = {} if loader.generator is None else {_GENERATOR: loader.generator.get_state()}
    return {**state, **own}


def _put(loader, state) -> None:
    own = state.get(_GENERATOR)
    loader.load_state_dict({key: x for key, x in state.items() if key != _GENERATOR})
    make = loader._get_iterator

    def make_unseen():
        del vars(loader)["_get_iterator"]
        before = host_state()
        try:
            return make()
        finally:
            put_host_state(before)
            if own is not None and loader.generator is not None:
                loader.generator.set_state(own)

    vars(loader)["_get_iterator"] = make_unseen  # for once: the class's own is behind it
