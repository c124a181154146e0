"""The parts of _modules/redis_upgrade.py that need no server: data files and their formats, the way there and back."""

from __future__ import annotations

import os

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

OLD, NEW = "7.0.15-aaaaaaaaaa", "8.0.2-bbbbbbbbbb"
APPENDS = [["appendonly", "yes"]]


@pytest.fixture
def upgrade(load, whole_files, tmp_path):
    """The module, with one instance whose link points at OLD and whose settings wish NEW; ``upgrade.wish`` is changed."""
    module = load("_modules/redis_upgrade.py")
    prefix, data = tmp_path / "opt", tmp_path / "6379"
    for folder in (prefix / OLD, prefix / NEW, data):
        folder.mkdir(parents=True)
    (prefix / "instance-6379").symlink_to(OLD)
    module._FOLDER = str(tmp_path / "lib")
    module.dir, module.prefix, module.build, module.pid = data, prefix, NEW, 10
    module.wish = {"name": "6379", "dir": str(data), "config": str(tmp_path / "6379.conf"), "directives": []}
    module.records = [{"build": OLD, "rdb_version": 10}, {"build": NEW, "rdb_version": 12}]
    module.__salt__ = {
        **whole_files,
        "redis_sidekiq.settings": lambda: {"redis": {"prefix": str(prefix), "instances": [module.wish]}},
        "redis_server.status": lambda instance, ask: {"pid": module.pid},
        "redis_server.wished_build": lambda: module.build,
        "redis_build.builds": lambda prefix: module.records,
    }
    (tmp_path / "6379.conf").write_text("port 6379\n")
    return module


def write(folder, **files):
    """Write data files by name, ``/`` in a name as ``__``."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("head", "version"),
    [
        (b"REDIS0011\xfa", 11),
        (b"REDIS00121", 12),
        (b"VALKEY080\xfa", 80),
        (b"*2\r\n$6\r\nSE", 0),
        (b"", 0),
        (b"REDIS", 0),
    ],
)
def test_a_snapshots_format_is_in_its_head(upgrade, head, version):
    write(upgrade.dir, dump_rdb=head)
    assert upgrade.data("6379") == {"files": {str(upgrade.dir / "dump.rdb"): len(head)}, "rdb_version": version}


def test_the_next_start_reads_the_aof_where_there_is_one(upgrade):
    write(upgrade.dir, dump_rdb=b"REDIS0012", appendonlydir__a_base_rdb=b"REDIS0010", appendonlydir__a_incr_aof=b"*1")
    assert upgrade.data("6379")["rdb_version"] == 12
    upgrade.wish["directives"] = APPENDS
    assert upgrade.data("6379")["rdb_version"] == 10
    (upgrade.dir / "appendonlydir/a.base.rdb").write_bytes(b"*1\r\n")
    assert upgrade.data("6379")["rdb_version"] == 0


def test_an_aof_of_before_7_is_one_file(upgrade):
    upgrade.wish["directives"] = [*APPENDS, ["appendfilename", '"my.aof"']]
    write(upgrade.dir, my_aof=b"REDIS0009...")
    assert upgrade.data("6379")["rdb_version"] == 9


@pytest.mark.parametrize(
    ("files", "directives", "refused"),
    [
        ({}, [], True),  # the newer server writes its snapshot when it ends
        ({"dump_rdb": b"REDIS0012"}, [], True),
        ({"appendonlydir__a_base_rdb": b"REDIS0012"}, APPENDS, True),
        ({"appendonlydir__a_base_rdb": b"REDIS0010"}, APPENDS, False),
        ({"appendonlydir__a_base_aof": b"*1\r\n"}, APPENDS, False),
        ({"dump_rdb": b"REDIS0010"}, APPENDS, True),  # no AOF yet: the newer server will write it
    ],
)
def test_an_older_build_is_refused_on_newer_data(upgrade, files, directives, refused):
    (upgrade.prefix / "instance-6379").unlink()
    (upgrade.prefix / "instance-6379").symlink_to(NEW)
    upgrade.build, upgrade.wish["directives"] = OLD, directives
    write(upgrade.dir, **files)
    said = upgrade.hindrance("6379")
    assert bool(said) is refused, said
    if refused:
        assert f"{OLD} is too old for the data" in said and "up to format 10" in said and "format 12" in said
        assert "BGREWRITEAOF" in said


def test_an_older_build_is_welcome_where_there_are_no_data(upgrade):
    (upgrade.prefix / "instance-6379").unlink()
    (upgrade.prefix / "instance-6379").symlink_to(NEW)
    upgrade.build, upgrade.pid = OLD, 0
    assert upgrade.hindrance("6379") == ""


def test_a_build_that_nobody_knows_the_format_of_is_not_refused(upgrade):
    write(upgrade.dir, dump_rdb=b"REDIS0099")
    upgrade.records = [{"build": OLD}, {"build": NEW, "rdb_version": None}]
    assert upgrade.hindrance("6379") == ""


def test_an_upgrade_is_begun_and_finished(upgrade):
    write(upgrade.dir, dump_rdb=b"REDIS0010 data")
    before = tree(upgrade.dir)
    upgrade.keep_config("6379")
    assert upgrade.begin("6379") is True
    found = upgrade.facts("6379")
    assert (found["build"], found["under_way"], found["refused"]) == (NEW, OLD, "")
    assert upgrade.may_go_back("6379")
    assert upgrade.begin("6379") is True  # nothing to do
    upgrade.finish("6379")
    assert upgrade.facts("6379")["under_way"] == "" and tree(upgrade.dir) == before
    assert os.listdir(upgrade._FOLDER) == []


def test_a_first_build_has_no_way_back(upgrade):
    (upgrade.prefix / "instance-6379").unlink()
    assert upgrade.begin("6379") is False
    assert upgrade.facts("6379")["build"] == NEW
    with pytest.raises(CommandExecutionError, match="no way back"):
        upgrade.back("6379", "it fell over")


@pytest.mark.parametrize("harm", ["nothing", "replaced", "removed", "appended", "new files"])
def test_the_way_back_brings_the_data_as_they_were(upgrade, harm):
    write(
        upgrade.dir, dump_rdb=b"REDIS0010 data", appendonlydir__a_base_rdb=b"REDIS0010", appendonlydir__a_incr_aof=b"*1"
    )
    before, config = tree(upgrade.dir), upgrade.wish["config"]
    upgrade.keep_config("6379")
    with open(config, "w") as stream:
        stream.write("a line that only the new one knows\n")
    upgrade.keep_config("6379")  # the first one counts
    upgrade.begin("6379")
    assert upgrade.may_go_back("6379")
    if harm == "replaced":
        (upgrade.dir / "new").write_bytes(b"REDIS0012")
        (upgrade.dir / "new").rename(upgrade.dir / "dump.rdb")
    elif harm == "removed":
        (upgrade.dir / "appendonlydir/a.base.rdb").unlink()
    elif harm == "appended":
        with open(upgrade.dir / "appendonlydir/a.incr.aof", "ab") as stream:
            stream.write(b"more")
    elif harm == "new files":
        write(upgrade.dir, appendonlydir__b_incr_aof=b"*2")
    assert upgrade.may_go_back("6379") is (harm == "nothing")
    said = upgrade.back("6379", "it fell over")
    aside = {name for name in tree(upgrade.dir) if name.startswith("after-upgrade-")}
    assert {name: content for name, content in tree(upgrade.dir).items() if name not in aside} == before
    assert bool(aside) is (harm in ("replaced", "appended", "new files")) is ("what 8.0.2-bbbbbbbbbb wrote" in said)
    found = upgrade.facts("6379")
    assert (found["build"], found["under_way"]) == (OLD, "") and "it fell over" in found["refused"]
    assert open(config).read() == "port 6379\n"
    assert "it fell over" in upgrade.hindrance("6379") and "redis_server.restart 6379" in upgrade.hindrance("6379")


def test_another_config_or_build_is_tried_again(upgrade):
    upgrade.begin("6379")
    upgrade.back("6379", "it fell over")
    upgrade.wish["directives"] = [["maxclients", "100"]]
    assert upgrade.hindrance("6379") == ""
    upgrade.wish["directives"] = []
    assert upgrade.hindrance("6379")
    upgrade.build = "8.0.6-cccccccccc"
    assert upgrade.hindrance("6379") == ""


STEPS = ("_put_back", "_copy_config", "_turn", "_write", "_tidy")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("done", [False, True])
def test_a_way_back_that_was_cut_off_ends_the_same(upgrade, monkeypatch, step, done):
    write(upgrade.dir, dump_rdb=b"REDIS0010 data")
    before = tree(upgrade.dir)
    upgrade.keep_config("6379")
    upgrade.begin("6379")
    (upgrade.dir / "new").write_bytes(b"REDIS0012")
    (upgrade.dir / "new").rename(upgrade.dir / "dump.rdb")
    real = getattr(upgrade, step)

    def cut_off(*args):
        if done:
            real(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(upgrade, step, cut_off)
        with pytest.raises(KeyboardInterrupt):
            upgrade.back("6379", "it fell over")
    if upgrade.facts("6379")["under_way"]:
        upgrade.back("6379", "it fell over")
    found = upgrade.facts("6379")
    assert (found["build"], found["under_way"], bool(found["refused"])) == (OLD, "", True)
    assert {name: text for name, text in tree(upgrade.dir).items() if not name.startswith("after-")} == before


def test_a_file_that_became_shorter_is_not_touched(upgrade):
    write(upgrade.dir, dump_rdb=b"REDIS0010 data")
    upgrade.begin("6379")
    os.truncate(upgrade.dir / "dump.rdb", 3)
    with pytest.raises(CommandExecutionError, match="shorter now"):
        upgrade.back("6379", "it fell over")
    assert upgrade.facts("6379")["build"] == NEW


def test_an_instance_that_goes_leaves_nothing(upgrade):
    upgrade.keep_config("6379")
    upgrade.begin("6379")
    upgrade.forget("6379")
    assert not os.path.lexists(upgrade.prefix / "instance-6379") and os.listdir(upgrade._FOLDER) == []


def test_only_instances_of_the_settings_are_known(upgrade):
    with pytest.raises(SaltInvocationError, match="not a Redis instance"):
        upgrade.facts("1")
