"""The formula's modules and states through Salt's own loader: a minion's configuration, no daemon, no host."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from saltfactories.utils import random_string
from saltfactories.utils.functional import Loaders


@pytest.fixture(scope="package")
def pillar() -> dict:
    """What these modules see as ``__pillar__``; a test package may say otherwise."""
    return {}


@pytest.fixture(scope="package")
def minion_opts(salt_factories, repo: Path, pillar: dict, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A masterless minion's configuration whose file root is the formula."""
    pillar_root = tmp_path_factory.mktemp("pillar")
    (pillar_root / "top.sls").write_text("base: {'*': [pillar]}\n")
    (pillar_root / "pillar.sls").write_text("#!json\n" + json.dumps(pillar))
    overrides = {
        "file_client": "local",
        "file_roots": {"base": [str(repo)]},
        "pillar_roots": {"base": [str(pillar_root)]},
    }
    return salt_factories.salt_minion_daemon(random_string("functional-"), overrides=overrides).config.copy()


@pytest.fixture(scope="package")
def loaders(minion_opts: dict) -> Loaders:
    """Salt's loaders, with the formula's modules and states synced."""
    return Loaders(minion_opts, loaded_base_name="formula.loaded")


@pytest.fixture(autouse=True)
def _fresh(loaders: Loaders):
    """No test sees what another one left in a loader's context."""
    yield
    loaders.reset_state()


@pytest.fixture
def modules(loaders: Loaders):
    """Execution modules: ``modules.sidekiq.status("sidekiq")``."""
    return loaders.modules


@pytest.fixture
def states(loaders: Loaders):
    """State modules: ``states.sidekiq.current("sidekiq")``; ``test=True`` as last argument."""
    return loaders.states


# Redis, really built: once in a session, by the module itself, as nobody, in a folder that nobody may enter. ---------

REDIS = "7.0.15"


@pytest.fixture(scope="session")
def redis_tarball() -> dict:
    """``source`` and ``source_hash`` of the tarball that the hosts build too."""
    from test.hosts.harness import images, packages

    images.need_tools()
    packages.prepare("bookworm")
    version, digest = packages.REDIS["bookworm"]
    assert version == REDIS
    return {"source": str(packages.PACKAGES / f"redis-{version}.tar.gz"), "source_hash": f"sha256={digest}"}


@pytest.fixture(scope="session")
def open_folder():
    """A folder that an unprivileged user may enter, with a path short enough for sockets; pytest's own are neither."""
    folder = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_flags() -> dict:
    """What is compiled in: systemd's notification and TLS where their headers are installed, and the quickest allocator."""

    def has(library: str) -> bool:
        return subprocess.run(["pkg-config", "--exists", library], check=False).returncode == 0

    return {"malloc": "libc", "systemd": has("libsystemd"), "tls": has("openssl")}


@pytest.fixture
def redis_build(modules, open_folder: Path, redis_tarball: dict, redis_flags: dict) -> Path:
    """The prefix with the real build, compiled at its first use."""
    prefix = open_folder / "real"
    wish = {"prefix": str(prefix), "user": "nobody"}
    made = modules.redis_build.make(REDIS, **redis_tarball, **wish, jobs=2, **redis_flags)
    modules.redis_build.use(made["build"], **wish)
    return prefix


@pytest.fixture
def make_tarball(open_folder: Path, redis_build: Path, request):
    """
    Return a function that makes a tarball whose Makefile copies the real programs, and whatever else it is told.

    It takes rules for make by target, which go before those; returns ``source`` and ``source_hash``. With the flavor
    ``valkey`` they have Valkey's names, and the server says of itself in its way (a line of INFO has another name).
    """

    def make(flavor: str = "redis", **rules: str) -> dict:
        name = hashlib.sha256(request.node.nodeid.encode() + repr((flavor, rules)).encode()).hexdigest()[:10]
        top = open_folder / name / "some-folder"
        (top / "src").mkdir(parents=True, exist_ok=True)
        programs = [
            "redis-server",
            "redis-cli",
            "redis-benchmark",
            "redis-sentinel",
            "redis-check-aof",
            "redis-check-rdb",
        ]
        rules = {
            program: rules.get(program.replace("-", "_"), f"cp {redis_build}/current/bin/$@ $@") for program in programs
        }
        if flavor == "valkey":
            rename = f"sed s/redis_git_sha1/valkey_version/ {redis_build}/current/bin/$(subst valkey,redis,$@) > $@"
            rules = {program.replace("redis", "valkey"): f"{rename}; chmod 755 $@" for program in programs}
        text = "".join(f"{program}:\n\t{rule}\n" for program, rule in rules.items())
        (top / "src" / "Makefile").write_text(text)
        path = open_folder / name / "redis.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(top, top.name)
        return {"source": str(path), "source_hash": "sha256=" + hashlib.sha256(path.read_bytes()).hexdigest()}

    return make


@pytest.fixture
def prefix(open_folder: Path, request):
    """A path for a prefix of the test's own."""
    path = open_folder / hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:10] / "opt"
    yield path
    shutil.rmtree(path.parent, ignore_errors=True)
