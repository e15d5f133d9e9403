"""What is written: whole or not at all, never over an input, never in place of a device."""

import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nexus.commands.options import PartitionerOption
from nexus.commands.plan import Export, plan
from nexus.commands.report import report
from nexus.commands.simulate import simulate
from nexus.core.errors import DocumentError
from nexus.core.io.outputs import check_writable, make_folder, write_atomically

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "profiles/h200/llama-3.1-8b.yaml"
PLAN = ROOT / "evidence/results/h200/azure_conv-500-15.plan.yaml"


def test_a_link_s_target_is_written(tmp_path: Path) -> None:
    link, target = tmp_path / "link.yaml", tmp_path / "target.yaml"
    link.symlink_to(target)
    for text in ("new", "newer"):
        write_atomically(link, text)
        assert link.is_symlink()
        assert target.read_text() == text


def test_where_nothing_can_be_written_is_known_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.yaml")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    for name, told in {
        ".": "Is a directory",
        "none/new.yaml": "no folder",
        "file/new.yaml": "Not a directory",
        "one": "Too many levels of symbolic links",
        "one/new.yaml": "Too many levels of symbolic links",
    }.items():
        for write in (check_writable, lambda path: write_atomically(path, "text")):
            with pytest.raises(DocumentError, match=told) as caught:
                write(tmp_path / name)
            assert "\n" not in str(caught.value)
    with pytest.raises(DocumentError, match="File exists"):
        make_folder(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_or_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    check_writable(Path("/dev/full"), Path("/dev/full"))
    with pytest.raises(DocumentError, match="/dev/full: No space left on device"):
        write_atomically(Path("/dev/full"), "text")
    write_atomically(Path("/dev/null"), "text")
    assert all(stat.S_ISCHR(Path(name).stat().st_mode) for name in ("/dev/full", "/dev/null"))
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    listener = threading.Thread(target=lambda: heard.append(pipe.read_text()))
    listener.start()
    write_atomically(pipe, "text")
    listener.join()
    assert heard == ["text"]
    assert pipe.is_fifo()


def spellings(path: Path) -> list[Path]:
    """Other names of a file."""
    folder = path.parent
    (folder / "link").symlink_to(path)
    (folder / "hard").hardlink_to(path)
    (folder / "there").symlink_to(folder)
    return [
        path,
        folder / "link",
        folder / "hard",
        folder / "there" / ".." / folder.name / path.name,
    ]


def test_no_input_is_written_over_by_any_name(tmp_path: Path) -> None:
    path = tmp_path / "input.yaml"
    path.write_text("measured")
    for name in spellings(path):
        with pytest.raises(DocumentError, match="would overwrite"):
            check_writable(name, None, tmp_path / "none", path)
    check_writable(path, tmp_path / "none")


@pytest.mark.parametrize(
    "run",
    [
        lambda at: plan(at / "profile.yaml", output=at / "profile.yaml"),
        lambda at: plan(output=Path("profile.yaml")),
        lambda at: plan(at / "profile.yaml", output=at / "trace.csv", trace=at / "trace.csv"),
        lambda at: plan(PROFILE, output=at / "profile.yaml", partitioner=PartitionerOption.mps),
        lambda at: plan(PROFILE, output=at / "profile.yaml", export=Export.pdmux),
        lambda at: simulate(at / "plan.yaml", chrome_trace=at / "plan.yaml"),
        lambda at: simulate(at / "plan.yaml", chrome_trace=at / "profile.yaml"),
        lambda at: report(at / "plan.yaml", output=at / "plan.yaml"),
        lambda at: report(at / "plan.yaml", at / "profile.yaml", output=at / "profile.yaml"),
    ],
)
def test_no_command_writes_over_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(PROFILE, tmp_path / "profile.yaml")
    shutil.copy(PLAN, tmp_path / "plan.yaml")
    (tmp_path / "trace.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DocumentError, match=r"would overwrite .*, which Nexus reads"):
        run(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
