"""Files to serve an artefact elsewhere: a Dockerfile for an image, a unit for systemd. Both end by SIGTERM, so that what is there is answered."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from fourfold.errors import InputError

DOCKERFILE, UNIT = "Dockerfile", "fourfold-serve.service"
MARK = "# Written by `fourfold serve --write`."
_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}              # engine → extra that brings it


def extras(manifest: Mapping[str, object]) -> list[str]:
    """The extras of fourfold that serving this artefact needs, in name order."""
    found = {"serve"}
    parts = manifest.get("parts")
    for part in parts if isinstance(parts, list) else []:
        setting = part.get("setting") if isinstance(part, dict) else None
        engine = str(setting.get("engine", "")) if isinstance(setting, dict) else ""
        if engine in _EXTRAS:
            found.add(_EXTRAS[engine])
        if isinstance(setting, dict) and engine == "inductor" and setting.get("precision") == "int8":
            found.add("torchao")
    return sorted(found)


def dockerfile(folder: Path, manifest: Mapping[str, object], options: Sequence[str], version: str, drain: float) -> str:
    """An image that serves the artefact; build it in the folder that holds the artefact's. Raises InputError for a name that COPY cannot take."""
    name = folder.resolve().name
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"{name!r} cannot stand in a Dockerfile.", "Give the artefact's folder a name of letters, digits, dots and hyphens.")
    words = ["fourfold", "serve", "/srv/artefact", "--host", "0.0.0.0", "--port", "8080", *options]
    command = ", ".join(f'"{word}"' for word in words)
    wanted = ",".join(extras(manifest))
    return f"""{MARK}
# Build beside the artefact:  docker build -f {DOCKERFILE} -t {name.lower()} FOLDER-THAT-HOLDS-{name}
# Run:                        docker run --rm -p 8080:8080 --stop-timeout {round(drain) + 5} --read-only --tmpfs /tmp {name.lower()}
FROM python:3.12-slim
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch \\
 && pip install --no-cache-dir 'fourfold[{wanted}]=={version}' \\
 && useradd --system --uid 10001 fourfold
COPY {name} /srv/artefact
USER 10001
ENV HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \\
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/ready', timeout=2)"]
CMD [{command}]
"""


def unit(folder: Path, command: str, options: Sequence[str], drain: float) -> str:
    """A unit of systemd: restarted when it fails, reloads the artefact on `systemctl reload`, sees nothing of the system but what it reads."""
    words = " ".join(shlex.quote(word).replace("%", "%%") for word in (command, "serve", str(folder.resolve()), *options))
    return f"""{MARK}
# Install: cp {UNIT} /etc/systemd/system/ && systemctl enable --now {UNIT.removesuffix('.service')}
[Unit]
Description=fourfold serve {folder.resolve().name.replace('%', '%%')}
After=network.target

[Service]
Type=exec
ExecStart={words}
ExecReload=/bin/kill -HUP $MAINPID
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec={round(drain) + 5}
Restart=on-failure
RestartSec=2
DynamicUser=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
Environment=HF_HUB_OFFLINE=1 HOME=/tmp
# The token of /admin (optional): EnvironmentFile=/etc/fourfold-serve.env with FOURFOLD_SERVE_TOKEN=...

[Install]
WantedBy=multi-user.target
"""


def ours(folder: Path) -> bool:
    """Whether files of these names in the folder were written here."""
    return all(MARK in path.read_text(encoding="utf-8", errors="replace")[:200] for name in (DOCKERFILE, UNIT) if (path := folder / name).is_file())


def write(target: Path, folder: Path, manifest: Mapping[str, object], options: Sequence[str], drain: float) -> list[Path]:
    """Write both files into `target`. Raises InputError where others stand there."""
    import sys

    from fourfold import __version__
    from fourfold.errors import unwritable
    from fourfold.folder import may_fill
    from fourfold.folder import write as put

    target = may_fill(target, (DOCKERFILE, UNIT), ours, option="--write")
    texts = {DOCKERFILE: dockerfile(folder, manifest, options, __version__, drain),
             UNIT: unit(folder, str(Path(sys.executable).with_name("fourfold")), options, drain)}
    try:
        return [put(target / name, text, parents=True) for name, text in texts.items()]
    except OSError as error:
        raise unwritable(target, error, "the files") from None
