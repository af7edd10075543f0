#!/usr/bin/env python3
"""Draws what the perdure command prints on a terminal: docs/pictures/command-line.svg, which the README shows.

docs/pictures/make.py       # with the command in PATH, or named by PERDURE_CLI

It runs the real command in a pseudo-terminal, over files that it makes. Two things are not as they come: the files are
seconds old and would all have the same age, so the ages are made up; and the fonts, which are whatever the reader has.
"""

import fcntl
import html
import os
import pathlib
import pty
import re
import struct
import subprocess
import tempfile
import termios

import torch

import perdure

PICTURE = pathlib.Path(__file__).with_name("command-line.svg")
COLUMNS = 100
COMMANDS = [("ls runs/gpt", 1), ("verify runs/gpt", 1), ("stats --nan broken.pt", 0), ("diff before.pt after.pt model", 1)]
AGES = ["2 h", "4 h", "6 h"]
COLOURS = {"31": "#ff7b72", "32": "#7ee787", "33": "#e3b341"}
WIDTH, HEIGHT, MARGIN = 7.8, 18, 16  # of a character, a line, and around them


def make_files():
    """In the current directory."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(96, 32), torch.nn.Linear(32, 128), torch.nn.GELU(), torch.nn.Linear(128, 32))
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = perdure.TrainingState(model=model, optimizer=optimizer, epoch=0)
    with perdure.CheckpointManager("runs/gpt", keep_last=3) as checkpoints:
        for state.step, loss in ((1000, 2.913), (2000, 2.604), (3000, 2.471)):
            checkpoints.save(state, metrics={"val_loss": loss})
    newest, middle, oldest = sorted(pathlib.Path("runs/gpt").glob("step-*.pt"), reverse=True)
    pathlib.Path(f"{oldest}.pin").write_text("release 1\n")
    damaged = bytearray(middle.read_bytes())
    damaged[20_000] ^= 1
    middle.write_bytes(damaged)
    newest.write_bytes(newest.read_bytes()[:-4000])
    weights = {key: x.clone() for key, x in model.state_dict().items()}
    perdure.save({"model": weights}, "before.pt")
    tuned = {key: x + 0.001 if key == "3.weight" else x for key, x in weights.items()}
    tuned["adapter.weight"] = torch.zeros(4, 32, dtype=torch.bfloat16)
    del tuned["3.bias"]
    perdure.save({"model": tuned}, "after.pt")
    weights["1.weight"][3, 5:9] = float("nan")
    weights["1.bias"][7] = float("inf")
    perdure.save({"model": weights}, "broken.pt")


def printed(command, code):
    """What a terminal gets from it, which must end with this code."""
    main, worker = pty.openpty()
    fcntl.ioctl(worker, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    env = {key: x for key, x in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    process = subprocess.Popen([os.environ.get("PERDURE_CLI", "perdure"), *command.split()], stdout=worker, stderr=worker, env=env)
    os.close(worker)
    text = b""
    try:
        while piece := os.read(main, 1 << 16):
            text += piece
    except OSError:  # the command has closed the other end
        pass
    os.close(main)
    if process.wait() != code:
        raise SystemExit(f"perdure {command} exits with {process.returncode}, not {code}:\n{text.decode()}")
    return text.decode().replace("\r\n", "\n")


def session():
    """Prompts, and what the commands print, the ages made up."""
    text = ""
    for command, code in COMMANDS:
        out = printed(command, code)
        if command.startswith("ls"):
            ages = iter(AGES)
            out = re.sub(r"(?<=  ) *\d+ s(?=  )", lambda age: next(ages).rjust(len(age[0])), out)
        text += f"\x1b[2m$\x1b[0m \x1b[1mperdure {command}\x1b[0m\n{out}\n"
    return text.rstrip("\n") + "\n"


def drawn(line, row):
    """Each run of one style at its own place, so that columns stand in line in any font."""
    runs, column, style = [], 0, ""
    for codes, text in re.findall(r"\x1b\[(\d+)m|([^\x1b]+)", line):
        if codes:
            style = {"0": "", "1": ' class="b"', "2": ' class="d"'}.get(codes) or (f' fill="{COLOURS[codes]}"' if codes in COLOURS else "")
            continue
        for word in re.finditer(r"\S+(?: \S+)*", text):
            x, length = MARGIN + (column + word.start()) * WIDTH, len(word[0]) * WIDTH
            runs.append(f'<tspan x="{x:.1f}" textLength="{length:.1f}"{style}>{html.escape(word[0], False)}</tspan>')
        column += len(text)
    return f'<text y="{MARGIN + 13 + row * HEIGHT}">{"".join(runs)}</text>' if runs else ""


def svg(text):
    lines = [piece for line in text.splitlines() for piece in wrapped(line)]
    width, height = COLUMNS * WIDTH + 2 * MARGIN, len(lines) * HEIGHT + 2 * MARGIN
    body = "\n".join(filter(None, (drawn(line, row) for row, line in enumerate(lines))))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}">\n'
        "<title>perdure ls, verify, stats and diff in a terminal</title>\n"
        "<style>text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; "
        "fill: #d0d7de } .b { font-weight: bold; fill: #fff } .d { fill: #8b949e }</style>\n"
        f'<rect width="100%" height="100%" rx="8" fill="#161b22" stroke="#30363d"/>\n{body}\n</svg>\n'
    )


def wrapped(line):
    """As the terminal does with what is too long for it; such lines begin with their only colour."""
    pieces, room = [""], COLUMNS
    for code, character in re.findall(r"(\x1b\[\d+m)|([^\x1b])", line):
        if not code and room == 0:
            pieces.append("")
            room = COLUMNS
        pieces[-1] += code + character
        room -= not code
    return pieces


def main():
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        make_files()
        PICTURE.write_text(svg(session()))
        os.chdir("/")


if __name__ == "__main__":
    main()
