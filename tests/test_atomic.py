"""replacing: a file is the old one or the new one, whole, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fastllm.atomic import make_parent, replacing, write_text


def test_the_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for content in ("first", "second"):
        with replacing(path) as temporary:
            temporary.write_text(content)
            assert temporary.parent == path.parent
        assert path.read_text() == content
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt(), ValueError("bad")])
def test_a_failure_leaves_the_old_file_alone(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the new")
            raise failure

    with pytest.raises(type(failure)):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_an_error_names_the_file_and_a_complete_message_stays(tmp_path: Path) -> None:
    """A full disk's error names no file, a read-only one's the hidden file."""

    def fail(error: OSError) -> str:
        with pytest.raises(type(error)) as raised, replacing(tmp_path / "outer"), replacing(tmp_path / "inner"):
            raise error
        assert os.listdir(tmp_path) == []
        return str(raised.value)

    end = f"{os.strerror(errno.EROFS)}; what was there before is untouched"
    for error in OSError(errno.EROFS, "x"), OSError(errno.EROFS, "x", str(tmp_path / ".inner.work.tmp")):
        assert fail(error) == f"[Errno {errno.EROFS}] {tmp_path / 'outer'} could not be written: {end}"
    assert fail(OSError("there is a rule; got this; do that")) == "there is a rule; got this; do that"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_a_device_that_is_full_is_named() -> None:
    with pytest.raises(OSError, match="/dev/full could not be written: No space left"):
        write_text("/dev/full", "text")


def test_what_is_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"must be in a folder; got .*file, which is a file; choose another"):
        make_parent(tmp_path / "file" / "runs" / "mine")
    if os.name == "posix":
        (tmp_path / "link").symlink_to(tmp_path / "gone")
        with pytest.raises(NotADirectoryError, match=r"got .*link, which is a link to nothing; choose another"):
            make_parent(tmp_path / "link" / "runs" / "mine")


def test_what_can_not_be_removed_does_not_hide_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only disk, where removing even a file that isn't there is refused."""

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ValueError, match="bad"), replacing(tmp_path / "file.txt"):
        raise ValueError("bad")


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX's")
def test_the_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with replacing(tmp_path / "replaced") as temporary:
        temporary.touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "replaced")]
    assert modes[0] == modes[1]


@pytest.mark.skipif(os.name != "posix", reason="links and permission bits as POSIX has them")
def test_a_link_stays_and_what_it_leads_to_keeps_its_permissions(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert (link.is_symlink(), real.read_text(), stat.S_IMODE(real.stat().st_mode)) == (True, "new", 0o600)


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="there are no devices")
def test_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "device").symlink_to("/dev/null")
    for path in (Path("/dev/null"), tmp_path / "device"):
        with replacing(path) as there:
            there.write_text("gone")
        assert path.is_char_device()


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="there are no devices")
@pytest.mark.parametrize("is_pipe", [False, True])
def test_what_is_printed_to_is_written_to_in_its_turn(tmp_path: Path, is_pipe: bool) -> None:
    code = "from fastllm.atomic import write_text; print('a'); write_text('/dev/stdout', 'b\\n'); print('c')"
    with open(tmp_path / "log", "w") as file:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE if is_pipe else file, check=True)
    printed = done.stdout if is_pipe else (tmp_path / "log").read_bytes()
    assert printed == b"a\nb\nc\n"
