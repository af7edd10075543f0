"""Files that mean harm, one or several of every class: hostile_files(folder) writes them.

Nothing here is random but the variants of a seed: the same seed gives the same bytes. hostile_files() are zips of
PyTorch's, as a run directory has them; format_files() are all else that perdure reads.
"""

import pathlib
import random

import torch

import perdure
from hostile_dcp import dcp_directories
from hostile_parts import torch_file, write
from hostile_pickles import pickles
from hostile_records import own_records
from hostile_safetensors import file, safetensors_directories, safetensors_files
from hostile_torch import legacy_files, script_files
from hostile_zips import mutations, zips

# What must happen, by the first word of a case: an ErrorCode that it is refused with, or
#   loads              it is harmless, and loads as torch.load loads it
#   refused            as corrupt or unsupported; a directory also as invalid or not_found, for a name in it
#   refused-or-loads   one of the two
LOADS, REFUSED, EITHER = "loads", "refused", "refused-or-loads"

_expected: dict[str, str] = {}


def expected(name: str) -> str:
    """What must happen to a file that hostile_files() made."""
    return _expected[name]


def canary(folder) -> pathlib.Path:
    """What would be there if anything in a file had been executed."""
    return pathlib.Path(folder) / "EXECUTED"


def good_files(folder) -> dict[str, pathlib.Path]:
    """Whole files, as perdure and torch write them."""
    folder = pathlib.Path(folder)
    state = {"w": torch.tensor([1.0, 2.0, 3.0]), "epoch": 3}
    perdure.save(state, folder / "good-perdure.pt")
    torch.save(state, folder / "good-torch.pt")
    return {"perdure": folder / "good-perdure.pt", "torch": folder / "good-torch.pt"}


def hostile_files(folder, seed: int = 0) -> dict[str, pathlib.Path]:
    """Writes all of them into `folder`: name -> path. Other seeds give other cuts and mutations."""
    folder = pathlib.Path(folder)
    good = {name: path.read_bytes() for name, path in good_files(folder).items()}
    # The tensor alone: its index has one storage and one tensor, whose fields lie where they are easily found.
    perdure.save({"w": torch.tensor([1.0, 2.0, 3.0])}, folder / "good-alone.pt")
    cases = {name: (what, torch_file(body)) for name, (what, body) in pickles(canary(folder)).items()}
    cases |= zips(random.Random(seed)) | own_records(folder / "good-alone.pt") | mutations(good, random.Random(seed))
    return {name: _written(folder / f"{name}.pt", name, *case) for name, case in cases.items()}


def format_files(folder, seed: int = 0) -> dict[str, pathlib.Path]:
    """The same of the other formats, directories too. What they must never reach is in the folder secret."""
    folder, seeded = pathlib.Path(folder), random.Random(seed)
    secret = _secret(folder)
    cases = safetensors_files(seeded) | safetensors_directories(secret)
    cases |= dcp_directories(canary(folder), secret, seeded)
    cases |= legacy_files(canary(folder), seeded) | script_files(canary(folder), seeded)
    return {name: _written(folder / name, name, *case) for name, case in cases.items()}


SECRET = "TOPSECRET"


def _secret(folder: pathlib.Path) -> pathlib.Path:
    """Whole files, which would load under their names if they were reached."""
    secret = folder / "secret"
    secret.mkdir()
    (secret / "secret.txt").write_text(SECRET * 100)
    (secret / "secret.safetensors").write_bytes(file(f'{{"{SECRET}":{{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}}}'))
    torch.save(torch.ones(3), secret / "secret.pt")
    return secret


def _written(path: pathlib.Path, name: str, what: str, content) -> pathlib.Path:
    _expected[name] = LOADS if what == "None" else what
    write(path, content)
    return path
