"""Which settings of the kernel differ, what is recorded and put back: with files in place of the kernel."""

from __future__ import annotations

import json

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

MEMORY, QUEUE, PAGES = "vm.overcommit_memory", "net.core.somaxconn", "transparent_hugepage"
WISH = {MEMORY: "1", QUEUE: "511", PAGES: "madvise"}


class Kernel:
    """The module on a kernel of files below ``folder``, each with what was last written to it."""

    def __init__(self, module, folder, monkeypatch):
        self.module, self.folder = module, folder
        self.sysctls, self.tmpfiles, self.record = folder / "sysctl", folder / "tmpfiles", folder / "lib/kernel.json"
        self.paths = {name: str(folder / name) for name in WISH}
        for name, value in (("_PATHS", self.paths), ("_SYSCTLS", self.sysctls), ("_TMPFILES", self.tmpfiles)):
            monkeypatch.setattr(module, name, value if isinstance(value, dict) else str(value))
        monkeypatch.setattr(module, "_RECORD", str(self.record))
        self.is_now(MEMORY, "0\n"), self.is_now(QUEUE, "4096\n"), self.is_now(PAGES, "[always] madvise never\n")

    def is_now(self, name, text):
        (self.folder / name).write_text(text)

    def values(self):
        return [(self.folder / name).read_text().strip() for name in WISH]

    def remembered(self):
        return {name: (entry["before"], entry["ours"]) for name, entry in json.loads(self.record.read_text()).items()}

    def settled(self, wish):
        found = self.module.facts(wish)
        return not (found["values"] or found["files"] or found["forget"])


@pytest.fixture
def kernel(load, whole_files, tmp_path, monkeypatch):
    module = load("_modules/redis_kernel.py")
    module.__salt__ = whole_files
    return Kernel(module, tmp_path, monkeypatch)


def test_what_differs_is_recorded_and_set_and_a_second_call_finds_nothing(kernel):
    found = kernel.module.facts(WISH)
    assert found["values"] == {MEMORY: {"old": "0", "new": "1"}, PAGES: {"old": "always", "new": "madvise"}}
    assert found["blocked"] == [] and not kernel.record.exists()
    kernel.module.apply(WISH)
    assert kernel.values() == ["1", "4096", "madvise"]
    assert kernel.sysctls.read_text().endswith(")\nvm.overcommit_memory = 1\n")
    assert kernel.tmpfiles.read_text().endswith(f"w- {kernel.paths[PAGES]} - - - - madvise\n")
    assert kernel.remembered() == {MEMORY: ("0", ["1"]), PAGES: ("always", ["madvise"])}
    assert kernel.record.stat().st_mode & 0o777 == 0o600 and kernel.sysctls.stat().st_mode & 0o777 == 0o644
    assert kernel.settled(WISH)


def test_a_least_value_is_raised_and_never_lowered(kernel):
    kernel.is_now(QUEUE, "128")
    kernel.module.apply({QUEUE: "511"})
    assert kernel.values()[1] == "511" and kernel.sysctls.read_text().endswith("net.core.somaxconn = 511\n")
    kernel.module.apply({QUEUE: "2048"})
    assert kernel.remembered() == {QUEUE: ("128", ["511", "2048"])}
    kernel.module.apply({QUEUE: "511"})
    assert kernel.values()[1] == "2048" and kernel.settled({QUEUE: "511"})
    # Somebody else sees to more: the next boot is his.
    kernel.is_now(QUEUE, "65535")
    kernel.module.apply({QUEUE: "511"})
    assert kernel.values()[1] == "65535" and not kernel.sysctls.exists() and kernel.settled({QUEUE: "511"})
    kernel.module.apply({})
    assert kernel.values()[1] == "65535" and not kernel.record.exists()


def test_a_queue_that_somebody_shortened_is_not_made_shorter_than_before(kernel):
    kernel.module.apply({QUEUE: "8192"})
    kernel.is_now(QUEUE, "100")
    kernel.module.apply({QUEUE: "511"})
    assert kernel.values()[1] == "4096"


def test_clean_puts_back_what_was_there_unless_somebody_changed_it(kernel):
    kernel.module.apply(WISH)
    kernel.is_now(MEMORY, "2")
    kernel.is_now(PAGES, "always [madvise] never")
    found = kernel.module.facts({})
    assert found["values"] == {PAGES: {"old": "madvise", "new": "always"}} and found["forget"]
    kernel.module.apply({})
    assert kernel.values() == ["2", "4096", "always"]
    assert not any(path.exists() for path in (kernel.record, kernel.sysctls, kernel.tmpfiles))
    assert kernel.settled({})


def test_one_setting_that_is_left_alone_is_put_back_and_the_others_stay(kernel):
    kernel.module.apply(WISH)
    rest = {QUEUE: "511", PAGES: "madvise"}
    kernel.module.apply(rest)
    assert kernel.values()[0] == "0" and not kernel.sysctls.exists() and kernel.tmpfiles.exists()
    assert list(kernel.remembered()) == [PAGES] and kernel.settled(rest)


def test_what_was_there_before_is_never_forgotten(kernel, monkeypatch):
    kernel.module.apply({MEMORY: "1"})
    kernel.module.apply({MEMORY: "2"})
    assert kernel.remembered() == {MEMORY: ("0", ["1", "2"])}
    kernel.is_now(MEMORY, "0")
    kernel.module.apply({MEMORY: "2"})
    kernel.module.apply({})
    assert kernel.values()[0] == "0"


@pytest.mark.parametrize(("wish", "then"), [(WISH, WISH), (WISH, {}), ({}, {})])
@pytest.mark.parametrize("step", range(1, 8))
def test_a_call_that_is_cut_off_at_any_step_is_made_whole_by_the_next(kernel, monkeypatch, wish, then, step):
    start = {QUEUE: "9000", MEMORY: "2"}
    kernel.module.apply(start)
    module, left = kernel.module, [step]
    write, put = module._write_or_remove, module._set

    def counted(act):
        def do(*words):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return act(*words)

        return do

    monkeypatch.setattr(module, "_write_or_remove", counted(write))
    monkeypatch.setattr(module, "_set", counted(put))
    try:
        module.apply(wish)
    except KeyboardInterrupt:
        pass
    monkeypatch.setattr(module, "_write_or_remove", write)
    monkeypatch.setattr(module, "_set", put)
    module.apply(then)
    assert kernel.settled(then)
    module.apply({})
    assert kernel.values()[:2] == ["0", "4096"] and "always" in kernel.values()[2] and not kernel.record.exists()


def test_what_cannot_be_written_is_told_and_nothing_is_recorded(kernel):
    # The kernel lets nobody write this one, root included.
    kernel.paths[MEMORY] = "/proc/sys/kernel/ngroups_max"
    (kernel.folder / QUEUE).unlink()
    found = kernel.module.facts({MEMORY: "1", QUEUE: "511"})
    assert (found["values"], found["files"]) == ({}, {}) and len(found["blocked"]) == 2
    assert "vm.overcommit_memory is 65536 and should be 1" in found["blocked"][0]
    assert "/proc/sys/kernel/ngroups_max cannot be written here" in found["blocked"][0]
    assert "net.core.somaxconn is not to be seen and should be 511" in found["blocked"][1]
    kernel.module.apply({MEMORY: "1", QUEUE: "511"})
    assert not kernel.record.exists() and not kernel.sysctls.exists()


def test_a_kernel_without_huge_pages_has_nothing_to_set(kernel):
    (kernel.folder / PAGES).unlink()
    assert kernel.settled({PAGES: "madvise"}) and kernel.module.facts({PAGES: "madvise"})["blocked"] == []


def test_what_the_kernel_does_not_take_and_a_damaged_record_are_errors(kernel):
    for wish in ({"vm.swappiness": 1}, {MEMORY: "one"}):
        with pytest.raises(SaltInvocationError):
            kernel.module.facts(wish)
    kernel.record.parent.mkdir()
    kernel.record.write_text('{"vm.overcommit_memory": "0"}')
    with pytest.raises(CommandExecutionError, match="damaged"):
        kernel.module.facts(WISH)
