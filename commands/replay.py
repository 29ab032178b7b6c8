"""`pocketvlm replay`: requests that a server wrote down are asked again, and each end is told beside the former one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.terminal import EXIT_FAILED, announce, progress
from commands.top import KeyOption

if TYPE_CHECKING:
    import httpx

_TOLD = re.compile(r"sha256:(?P<digest>[0-9a-f]{64}) (?P<type>\S+) \d+ bytes")
_PATTERN = "requests-*.jsonl"
_TIMEOUT_S = 600.0
_HIDDEN = "[redacted]"
_SHOWN_CHARACTERS = 500


def replay(
    recording: Annotated[Path, typer.Argument(help="A file of `serve --record`, or its folder.", show_default=False)],
    url: Annotated[str, typer.Argument(help="The server, such as http://127.0.0.1:8000.", show_default=False)],
    images: Annotated[
        Path | None,
        typer.Option(help="A folder of files that are put back where a digest tells of them. Default: none are."),
    ] = None,
    key: KeyOption = None,
) -> None:
    """Ask recorded requests again, one after another, and print how each ended then and now.

    Exit code 1 where one ends with another status.
    """
    import httpx

    known = {} if images is None else _files_by_digest(images)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    num_asked = num_other = num_left_out = 0
    with httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=_TIMEOUT_S) as client:
        for line in _lines(recording):
            try:
                body = _whole(line["body"], known)
            except KeyError:
                num_left_out += 1
                continue
            status = _asked(client, line, body)
            num_asked += 1
            num_other += status != line["status"]
    announce(f"{num_asked} asked, {num_other} ended with another status, {num_left_out} left out (images, or no body)")
    if num_other:
        raise typer.Exit(EXIT_FAILED)


def _lines(recording: Path) -> Iterator[dict[str, Any]]:
    files = (
        sorted(recording.glob(_PATTERN), key=lambda file: file.stat().st_mtime_ns)
        if recording.is_dir()
        else [recording]
    )
    if not files:
        raise typer.BadParameter(f"{recording} holds no {_PATTERN}")
    for file in files:
        lines = file.read_text("utf-8", "surrogatepass").split("\n")  # splitlines would cut at U+2028 in a text as well
        for number, text in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
            try:
                line = json.loads(text)
                line["status"], line["method"], line["path"]
            except (ValueError, KeyError, TypeError) as error:
                raise typer.BadParameter(f"{file}, line {number} is no recorded request") from error
            yield line


def _files_by_digest(folder: Path) -> dict[str, bytes]:
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return {hashlib.sha256(data).hexdigest(): data for data in files}


def _whole(value: Any, known: dict[str, bytes]) -> Any:
    """Return a body with the files that digests tell of.

    Raises:
        KeyError: One is not known, or something else was left out of the recording.
    """
    if isinstance(value, dict):
        return {name: _whole(each, known) for name, each in value.items()}
    if isinstance(value, list):
        return [_whole(each, known) for each in value]
    if isinstance(value, str) and _HIDDEN in value:
        raise KeyError(_HIDDEN)
    if isinstance(value, str) and (told := _TOLD.fullmatch(value)):
        payload = base64.b64encode(known[told["digest"]]).decode()
        return payload if told["type"] == "base64" else f"data:{told['type']};base64,{payload}"
    return value


def _asked(client: httpx.Client, line: dict[str, Any], body: Any) -> int:
    """Ask once more, print how it ended, and return the status.

    Raises:
        MachineError: Nobody answers.
    """
    import httpx

    from bundle.errors import MachineError

    started_s = time.monotonic()
    try:
        answer = client.request(line["method"], line["path"], json=body)
    except httpx.HTTPError as error:
        raise MachineError(f"{client.base_url} does not answer: {error}") from error
    now_s = time.monotonic() - started_s
    announce(
        f"{line.get('id', '-')} {line['path']}: status {line['status']} then, {answer.status_code} now; "
        f"{line.get('total_s', 0.0):.3f} s then, {now_s:.3f} s now"
    )
    if answer.status_code != line["status"]:
        progress(answer.text[:_SHOWN_CHARACTERS])
    return answer.status_code
