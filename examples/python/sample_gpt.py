"""Prints text from a model that train_gpt has trained, in either language.

python sample_gpt.py --from runs/gpt --text-length 200
"""

import argparse
import pathlib

import torch
from gpt import CONFIG, Gpt

import perdure


def newest_checkpoint(path: pathlib.Path) -> pathlib.Path:
    if not path.is_dir():
        return path
    found = perdure.list_checkpoints(path)
    if not found:
        raise SystemExit(f"{path}: no checkpoint there; train first: train_gpt --run {path} --text ...")
    return found[0].path


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--from", required=True, dest="source", type=pathlib.Path, help="a checkpoint, or a run directory"
    )
    parser.add_argument("--text-length", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    model = Gpt(**CONFIG)
    model.load_state_dict(perdure.load(newest_checkpoint(args.source), keys=["model"])["model"])
    print(model.sample("\n", args.text_length).strip("\n"))


if __name__ == "__main__":
    main()
