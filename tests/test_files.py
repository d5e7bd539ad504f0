"""Writing: whole or not at all, by many at once, and nothing of anybody else's is deleted."""

import json
import os
import resource
import subprocess
import sys
import threading

import pytest

from jaxinterp import files

HOSTILE = [
    "notes.txt", ".parts/mine.npy", "x.partial", ".manifest.1.json", "chunk-0.npy", "run.json",
    "deep/er/.x.partial", "inputs/c/mine", ".jaxinterp-notes", "empty.jaxinterp.lock",
]  # fmt: skip


def scatter(folder):
    """A person's files, of names like ours."""
    for name in HOSTILE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")


def intact(folder):
    return all((folder / name).read_text() == f"mine: {name}" for name in HOSTILE)


def everything(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def write(path, text):
    with files.whole(path) as temporary:
        temporary.write_text(text)


# Whole


@pytest.mark.parametrize("times", [25, pytest.param(200, marks=pytest.mark.long)])
def test_eight_threads_write_one_file(tmp_path, times):
    """A reader sees a whole text at every moment; the temporary names are all different."""
    path, torn, seen = tmp_path / "one.txt", [], set()
    write(path, "0" * 4000)
    done = threading.Event()

    def writing(letter):
        for _ in range(times):
            with files.whole(path) as temporary:
                seen.add(temporary.name)
                temporary.write_text(letter * 4000)

    def reading():
        while not done.is_set():
            text = path.read_text()
            if len(text) != 4000 or len(set(text)) != 1:
                torn.append(text)

    writers = [threading.Thread(target=writing, args=(letter,)) for letter in "abcdefgh"]
    reader = threading.Thread(target=reading)
    reader.start()
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    done.set()
    reader.join()
    assert torn == []
    assert len(seen) == 8 * times
    assert everything(tmp_path) == ["one.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_block_that_fails_leaves_what_was_there(tmp_path, error):
    def half(manager):
        with manager as temporary:
            (temporary / "part" if temporary.is_dir() else temporary).write_text("half")
            raise error("no")

    def failing(manager):
        with pytest.raises(error, match="no"):
            half(manager)

    write(tmp_path / "a.txt", "before")
    with files.whole_folder(tmp_path / "b") as folder:
        (folder / "c").write_text("before")
    failing(files.whole(tmp_path / "a.txt"))
    failing(files.whole_folder(tmp_path / "b", overwrite=True))
    failing(files.whole(tmp_path / "new" / "deep" / "a.txt"))
    failing(files.whole_folder(tmp_path / "other" / "b"))
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "b" / "c").read_text() == "before"
    assert everything(tmp_path) == ["a.txt", "b", f"b/{files.MARK}", "b/c"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda n: (order.append(os.readlink(f"/proc/self/fd/{n}")), real(n))
    )
    write(tmp_path / "a.txt", "new")
    (synced,) = order
    assert synced != str(tmp_path / "a.txt")
    assert synced.startswith(str(tmp_path / ".a.jaxinterp-"))
    order.clear()
    with files.whole_folder(tmp_path / "b") as folder:
        (folder / "c").mkdir()
        (folder / "c" / "d").write_text("x")
    assert sorted(map(os.path.basename, order))[-1] == "d"
    assert all(str(tmp_path / "b/") not in path for path in order)


def test_a_link_stays_one(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "a.txt").symlink_to(tmp_path / "far" / "b.txt")
    write(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "far" / "b.txt").read_text() == "text"


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    scatter(tmp_path)
    with pytest.raises(IsADirectoryError, match="is a folder: give the path of a file"):
        write(tmp_path, "x")
    assert intact(tmp_path)


# What is ours


def test_a_folder_that_was_not_written_here_is_not_replaced(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    scatter(mine)
    before = everything(mine)
    (tmp_path / "file").write_text("mine")
    for path, says in (
        (mine, "nothing shows that jaxinterp wrote it"),
        (tmp_path / "file", "is a"),
    ):
        with (
            pytest.raises(FileExistsError, match=says),
            files.whole_folder(path, overwrite=True) as folder,
        ):
            (folder / "a").write_text("new")
    assert intact(mine)
    assert everything(mine) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_of_ours_is_replaced_unless_something_was_put_into_it(tmp_path):
    for text in ("one", "two"):
        with files.whole_folder(tmp_path / "a", overwrite=True) as folder:
            (folder / text).write_text(text)
    assert everything(tmp_path / "a") == [files.MARK, "two"]
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with (
        pytest.raises(FileExistsError, match=r"holds 'notes\.txt'"),
        files.whole_folder(tmp_path / "a", overwrite=True),
    ):
        pass
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "a" / "two").read_text() == "two"
    (tmp_path / "empty").mkdir()
    with files.whole_folder(tmp_path / "empty", overwrite=True) as folder:
        (folder / "x").write_text("x")


def test_a_damaged_marker_proves_nothing(tmp_path):
    for number, text in enumerate(
        ("", "{", "[]", '{"by": "x", "files": []}', '{"by": "jaxinterp"}')
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a").write_text("mine")
        (folder / files.MARK).write_text(text)
        with pytest.raises(FileExistsError, match="nothing shows"):
            files.check_replaceable(folder)
        with pytest.raises(FileExistsError, match="not a marker that jaxinterp wrote"):
            files.mark(folder, ["a"])
        assert not files.discard(folder)
        assert (folder / "a").read_text() == "mine"
        assert (folder / files.MARK).read_text() == text


def test_only_what_a_marker_lists_is_discarded(tmp_path):
    (tmp_path / "inputs" / "c" / "0").mkdir(parents=True)
    for name in ("inputs/c/0/0", "inputs/zarr.json", "z.nc"):
        (tmp_path / name).write_text("ours")
    with files.whole_folder(tmp_path / "all" / "one") as folder:
        (folder / "x").write_text("ours")
    files.mark(tmp_path, ["inputs/zarr.json", "z.nc", "gone.nc"], ["inputs/c/[0-9]*"])
    scatter(tmp_path)
    (tmp_path / "nothing").mkdir()
    files.discard(tmp_path)
    assert intact(tmp_path)
    assert [n for n in everything(tmp_path) if not any(h.startswith(n) for h in HOSTILE)] == [
        "nothing"
    ]
    files.discard(tmp_path)
    assert intact(tmp_path)


def left(path, pid, ending="", aside="", space=files._SPACE):
    tag = f"{files._HOST}_{space}-{pid}-0123abcd"
    return path.with_name(f".{path.name}.jaxinterp{aside}-{tag}{ending}")


@pytest.fixture
def gone():
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_dead_processes_are_ours_to_delete(tmp_path, gone):
    scatter(tmp_path)
    dead = [
        left(tmp_path / "z", gone),
        left(tmp_path / "z", gone, ".nc"),
        left(tmp_path / "y", os.getpid()),
    ]
    alive = [
        left(tmp_path / "z", os.getppid()),
        tmp_path / ".z.jaxinterp-else-1-0123abcd.nc",
        left(tmp_path / "z", gone, space="0123abcd"),  # of a container of the same name
    ]
    for path in (*dead, *alive):
        path.write_text("half")
    with files.whole(tmp_path / "new") as temporary:
        temporary.write_text("x")
        files.tidy(tmp_path)
        assert temporary.exists()
    assert intact(tmp_path)
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in alive)


def test_a_folder_moved_aside_by_a_killed_process_comes_back(tmp_path, gone):
    for name in ("a", "b"):
        left(tmp_path / name, gone, aside="-aside").mkdir()
        (left(tmp_path / name, gone, aside="-aside") / "x").write_text("old")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_text("new")
    files.tidy(tmp_path)
    assert everything(tmp_path) == ["a", "a/x", "b", "b/x"]
    assert [(tmp_path / n / "x").read_text() for n in "ab"] == ["old", "new"]


def test_a_file_whose_name_ends_like_a_folder_moved_aside_does_not_come_back(tmp_path, gone):
    """Half-written, `x.old` must not become `x`."""
    process = (
        "import os\nfrom pathlib import Path\nfrom jaxinterp import files\n"
        f"with files.whole(Path({str(tmp_path)!r}) / 'x.old') as temporary:\n"
        "    temporary.write_text('half')\n    os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", process], check=True)
    assert len(everything(tmp_path)) == 1
    files.tidy(tmp_path)
    assert everything(tmp_path) == []


def test_a_listed_name_is_no_pattern(tmp_path):
    for name in ("a[1].txt", "a1.txt"):
        (tmp_path / name).write_text(name)
    files.mark(tmp_path, ["a[1].txt"])
    with pytest.raises(FileExistsError, match=r"holds 'a1\.txt'"):
        files.check_replaceable(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds 'a1\.txt'"):
        files.check_replaceable(tmp_path, ["a[1].txt"])
    assert files.discard(tmp_path)
    assert everything(tmp_path) == ["a1.txt"]


def test_a_lock_that_a_killed_run_left_is_nobodys_file(tmp_path):
    (tmp_path / f".checkpoint{files.LOCK}").write_text("")
    assert files.content(tmp_path) == []
    files.check_replaceable(tmp_path)


# One run at a time


def test_a_folder_is_one_runs_at_a_time(tmp_path):
    with files.locked(tmp_path / "a" / "b") as folder:
        assert folder == tmp_path / "a" / "b"
        with (
            pytest.raises(BlockingIOError, match=f"written to by process {os.getpid()} of"),
            files.locked(folder),
        ):
            pass
        code = f"from jaxinterp import files\nwith files.locked({str(folder)!r}): pass"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert other.returncode == 1
        assert f"written to by process {os.getpid()} of" in other.stderr
        with files.locked(folder, ".other"):
            pass
    assert not (tmp_path / "a").exists()
    with files.locked(tmp_path / "a"):
        (tmp_path / "a" / "kept").write_text("x")
    assert everything(tmp_path) == ["a", "a/kept"]


def test_the_lock_of_a_dead_process_counts_for_nothing(tmp_path, gone):
    lock = tmp_path / files.LOCK
    for text in ("", json.dumps({"by": "jaxinterp", "host": files._HOST, "pid": gone})):
        lock.write_text(text)
        with files.locked(tmp_path):
            assert json.loads(lock.read_text())["pid"] == os.getpid()
        assert not lock.exists()


def test_locks_of_other_hosts_and_other_peoples_files_stay(tmp_path):
    lock = tmp_path / files.LOCK
    elsewhere = json.dumps({"by": "jaxinterp", "host": "elsewhere", "pid": 1})
    cases = {elsewhere: f"process 1 of elsewhere, another host.*delete {files.LOCK}",
             "mine": "not a lock that jaxinterp wrote"}  # fmt: skip
    for text, says in cases.items():
        lock.write_text(text)
        with pytest.raises(OSError, match=says), files.locked(tmp_path):
            pass
        assert lock.read_text() == text


# No room


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path):
    """A small limit of what a file may hold, as a disk without room."""
    write(tmp_path / "a.txt", "before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def tries(work):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            with pytest.raises(files.DiskFull, match=r"full\. Make room, then run it again"):
                work()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def folder():
        with files.whole_folder(tmp_path / "b") as folder:
            (folder / "c").write_text("x" * 5000)

    tries(lambda: write(tmp_path / "a.txt", "x" * 5000))
    tries(folder)
    tries(lambda: files.append(tmp_path / "log", "x" * 5000))
    assert (tmp_path / "a.txt").read_text() == "before"
    assert [n for n in everything(tmp_path) if n != "log"] == ["a.txt"]
