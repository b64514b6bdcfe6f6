"""What `comfy node pack` and the Comfy Registry take of this repository, as git itself reads `.comfyignore`."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def git(*arguments: str) -> str:
    """What a git command says of the repository, whoever owns its folder."""
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout


def listed(*options: str) -> list[str]:
    """Files in git, relative to the pack's root; not those that were removed and are not committed yet."""
    names = git("ls-files", "--cached", "-z", *options).split("\0")
    return sorted(name for name in names if name and (ROOT / name).exists())


def shipped(ignore: Path = ROOT / ".comfyignore") -> list[str]:
    """The files in git that no pattern of an ignore file leaves out."""
    return sorted(set(listed()) - set(listed("--ignored", f"--exclude-from={ignore}")))
