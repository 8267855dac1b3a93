"""A folder of ours is whole or not there, whatever happened to the process that wrote it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gr_compile.output_folder import FolderError, written_whole

KILLED = """
import os, sys
from pathlib import Path
from gr_compile.output_folder import written_whole
with written_whole(Path(sys.argv[1]), "report.json", {"graphs"}) as folder:
    (folder / "half.txt").write_text("half")
    if sys.argv[2] == "between":
        (folder.parent / "before").mkdir()
        Path(sys.argv[1]).rename(folder.parent / "before")
    os._exit(9)
"""


def write(out, text="new"):
    with written_whole(out, "report.json", {"graphs"}) as folder:
        (folder / "report.json").write_text('{"graphs": []}')
        (folder / "text").write_text(text)


def killed(out, when):
    subprocess.run([sys.executable, "-c", KILLED, str(out), when], check=False)


def held(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_a_killed_process_left_is_removed_and_never_mixed_in(tmp_path):
    killed(tmp_path / "out", "while writing")
    assert any("half.txt" in name for name in held(tmp_path))
    write(tmp_path / "out")
    assert held(tmp_path) == ["out", "out/report.json", "out/text"]


def test_what_was_there_comes_back(tmp_path):
    """The process was killed between the two renamings; the next one fails, and the folder is as it was."""
    write(tmp_path / "out", "old")
    killed(tmp_path / "out", "between")
    assert not (tmp_path / "out").exists()
    with pytest.raises(KeyError), written_whole(tmp_path / "out", "report.json", {"graphs"}):
        raise KeyError
    assert held(tmp_path) == ["out", "out/report.json", "out/text"]
    assert (tmp_path / "out" / "text").read_text() == "old"


def test_what_another_process_writes_now_is_left_alone(tmp_path):
    waits = KILLED.replace("os._exit(9)", "print(flush=True); sys.stdin.read(); os._exit(0)")
    command = [sys.executable, "-c", waits, str(tmp_path / "out"), "while writing"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        write(tmp_path / "out")
        assert sum(path.name == "half.txt" for path in tmp_path.rglob("*")) == 1
        other.communicate()


@pytest.mark.parametrize("name", [".out-notes", ".other-x1y2"])
def test_folders_of_other_people_are_left_alone(tmp_path, name):
    (tmp_path / name / "part").mkdir(parents=True)
    write(tmp_path / "out")
    assert (tmp_path / name / "part").is_dir()


def test_a_file_below(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match="cannot be written"):
        write(tmp_path / "file" / "out")
