"""What `comfy node pack` and the Comfy Registry take of this repository, as git itself reads `.comfyignore`."""

import functools
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
IS_CLONE = (ROOT / ".git").exists()


@functools.cache
def repository() -> tempfile.TemporaryDirectory:
    """For a copy without a history, as of a downloaded archive: an empty repository elsewhere."""
    folder = tempfile.TemporaryDirectory()
    subprocess.run(["git", "init", "--quiet", "--bare", folder.name], check=True)
    return folder


def git(*arguments: str, stdin: str = "") -> str:
    """What a git command says of the pack's folder, whoever owns it."""
    place = [] if IS_CLONE else [f"--git-dir={repository().name}", f"--work-tree={ROOT}"]
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), *place, *arguments]
    return subprocess.run(command, input=stdin, check=True, capture_output=True, text=True, encoding="utf-8").stdout


def listed(*options: str) -> list[str]:
    """Files in git, relative to the pack's root. Not those that were removed and are not committed yet."""
    which = ["--cached"] if IS_CLONE else ["--others", "--exclude-per-directory=.gitignore"]
    names = git("ls-files", "-z", *which, *options).split("\0")
    return sorted(name for name in names if name and (ROOT / name).exists())


def shipped(ignore: Path = ROOT / ".comfyignore") -> list[str]:
    """The files in git that no pattern of an ignore file leaves out."""
    return sorted(set(listed()) - set(listed("--ignored", f"--exclude-from={ignore}")))
