"""Names in a module's state without the wrappers around modules: what DistributedDataParallel, DataParallel and
torch.compile wrap is saved as if they were not there, at the top of a model and inside it.

torch.optim.swa_utils.AveragedModel has state of its own (n_averaged): it is no wrapper, and keeps its names.
"""

import collections

# Class -> the name that it has for what it wraps. By name: importing some of them takes seconds.
_WRAPPERS = {
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): "module",
    ("torch.nn.parallel.data_parallel", "DataParallel"): "module",
    ("torch._dynamo.eval_frame", "OptimizedModule"): "_orig_mod",
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "ActivationWrapper"): "_checkpoint_wrapped_module",
}


def inner_name(module) -> str | None:
    """The name of the module that a wrapper wraps; None where `module` is none. The core asks, too."""
    for base in type(module).__mro__:
        if name := _WRAPPERS.get((base.__module__, base.__qualname__)):
            return name
    return None


def plain_state(module):
    """module.state_dict() under plain names."""
    own = module.state_dict()
    names = _Names.of(module, own)
    return names.plain(own) if names else own


def own_keys(saved, module):
    """A state_dict under plain names as module.load_state_dict takes it."""
    names = _Names.of(module, module.state_dict())
    return names.own(saved) if names else saved


class _Names:
    """From a module's own names to the plain ones, and back."""

    @classmethod
    def of(cls, module, state):
        """None where nothing is wrapped."""
        keys = "\n".join(k for k in state if isinstance(k, str))
        if "module." not in keys and "_orig_mod." not in keys:  # far quicker than to walk through the modules
            return None
        names = cls(module, state)
        ambiguous = len(names.to_own) < len(names.to_plain)
        return None if ambiguous or names.to_own == names.to_plain else names

    def __init__(self, module, state):
        self.paths = _plain_paths(module)
        self.to_plain = {key: self._plain_key(key) for key in state if isinstance(key, str)}
        self.to_own = {plain: key for key, plain in self.to_plain.items()}

    def plain(self, state):
        return _renamed(state, self.to_plain, lambda metadata: {self.paths.get(p, p): x for p, x in metadata.items()})

    def own(self, state):
        return _renamed(state, self.to_own, lambda metadata: {
            own: metadata[plain] for own, plain in self.paths.items() if plain in metadata
        })  # fmt: skip

    def _plain_key(self, key):
        path, _, rest = key.rpartition(".")
        while path not in self.paths:  # a hook's own names
            path, _, last = path.rpartition(".")
            rest = f"{last}.{rest}"
        return _joined(self.paths[path], rest)


def _plain_paths(module) -> dict:
    """{path of a submodule: its path without the wrappers}"""
    plain, inner = {}, {}
    for path, each in module.named_modules(remove_duplicate=False):
        parent, _, name = path.rpartition(".")
        is_inner = path and inner[parent] == name
        plain[path] = plain[parent] if is_inner else _joined(plain.get(parent, ""), name)
        inner[path] = inner_name(each)
    return plain


def _joined(path, name):
    return f"{path}.{name}" if path else name


def _renamed(state, names, rename_metadata):
    out = collections.OrderedDict((names.get(key, key), x) for key, x in state.items())
    if (metadata := getattr(state, "_metadata", None)) is not None:
        out._metadata = type(metadata)(rename_metadata(metadata))
    return out
