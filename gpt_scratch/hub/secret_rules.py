"""Secret scanning rules on bytes: tokens, keys, passwords, values of secret environment variables, and local paths.

The token formats of several hundred services come from kingfisher (github.com/mongodb/kingfisher, Apache 2.0), run in this process and
offline. None of its rules relies on entropy alone. The rules here cover what it omits because it cannot verify it with a service.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UserError

PATH = "an absolute path of a machine"
OWN_VALUE = "the value of a secret of this environment"
# What the rules below and kingfisher's look for, as shown in messages.
KINDS = (
    "access tokens and keys of services", "private keys", "JSON web tokens", "passwords in addresses, settings and .netrc lines",
    "values of this environment's secrets", "absolute paths of machines",
)  # fmt: skip

# A format that begins with letters may match within a word, since the strings of an Arrow file follow each other without a gap. A long
# unbroken run of such letters is base64 (see `_in_a_long_run`). A rule is tried only on text that contains one of its literals (in lower
# case for those of NEED_A_DIGIT): most text contains none of them, and checking that is cheap.
FORMATS: list[tuple[str, tuple[bytes, ...], bytes]] = [
    ("a Hugging Face token", (b"hf_", b"api_org_"), rb"(?:hf|api_org)_[A-Za-z0-9]{30,}"),
    ("a GitHub token", (b"gh", b"github_pat_"), rb"github_pat_\w{20,}|gh[oprsu]_[A-Za-z0-9]{30,}"),
    ("a GitLab token", (b"glpat-",), rb"glpat-[\w-]{20,}"),
    ("an AWS access key", (b"AKIA", b"ASIA", b"ABIA", b"ACCA"), rb"(?<![A-Z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Z0-9])"),
    ("a Google key", (b"AIza", b"GOCSPX-", b"ya29."), rb"AIza[\w-]{35}|GOCSPX-[\w-]{28}|\bya29\.[\w-]{40,}"),
    ("a Slack token", (b"xox",), rb"\bxox[abeoprs]-[\w-]{10,}"),
    ("a key of an API", (b"sk-", b"ntn_"), rb"(?<![A-Za-z0-9])sk-(?=[\w-]*\d)[\w-]{20,}|\bntn_[A-Za-z0-9]{40,}"),
    ("a Modal token", (b"ak-", b"as-"), rb"(?<![\w-])a[ks]-[A-Za-z0-9]{22}(?![\w-])"),
    ("a Telegram token", (b":AA",), rb"(?<!\d)\d{8,10}:AA[\w-]{33}(?![\w-])"),
    ("a Discord webhook", (b"/api/webhooks/",), rb"discord(?:app)?\.com/api/webhooks/\d{17,20}/[\w-]{60,}"),
    ("an Azure storage key", (b"AccountKey=",), rb"AccountKey=[A-Za-z0-9+/]{86}=="),
    ("a Kaggle key", (b'"username"',), rb'"username"\s{0,9}:\s{0,9}"[^"\n]{1,99}"\s{0,9},\s{0,9}"key"\s{0,9}:\s{0,9}"[0-9a-f]{32}"'),
    ("a JSON web token", (b"eyJ",), rb"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{16,}"),
    ("a private key", (b"PRIVATE KEY", b"PuTTY-"), rb"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-\d"),
    ("a password in a .netrc line", (b"machine",),
     rb"\bmachine\s{1,9}\S{1,99}\s{1,9}login\s{1,9}\S{1,99}\s{1,9}password\s{1,9}([^\s\"']{4,99})"),
    ("a password in an address", (b"://",), rb"://[^\s/:@\"'<>{}$]{0,99}:([^\s/:@\"'<>{}$]{3,199})@[A-Za-z0-9\[]"),
    ("credentials of an HTTP header", (b"authorization",),
     rb"(?i:authorization)[\"']?\s{0,9}[:=]\s{0,9}[\"']?(?i:bearer|basic|token)\s{1,9}([\w+/.=~-]{16,})"),
    ("a password or key in a setting", (b"passw", b"secret", b"key", b"_token"),
     rb"(?:(?i:passw(?:or)?d|secret|api[_-]?key|access[_-]?key|private[_-]?key|(?:api|auth|access|refresh)[_-]?token)"
     rb"|[A-Z]_TOKEN|(?i:(?:hf|hub)_token))[\"']?\]?\s{0,9}(?:=>?|:)\s{0,9}[\"']?([\w+/.=~!#%^&*-]{8,})"),
]  # fmt: skip
RULES = [(kind, literals, re.compile(pattern)) for kind, literals, pattern in FORMATS]
REPLACED = ("generic-credential-uri",)  # by the rule on addresses here, which ignores examples such as user:password@host
NEED_A_DIGIT = (
    "credentials of an HTTP header",
    "a password or key in a setting",
)  # the value must also hold a letter and a digit, since these rules match prose and code
EXAMPLES = re.compile(
    rb"(?i:.{0,3}(?:passw|secret|token|example|your|my-|changeme|none|null|true|false)|.*(?:environ|getenv|config\.|args\.))"
)
SECRET_VARIABLES = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
# Folders that hold users' files; /usr or /dev identify nobody.
PATHS = re.compile(
    rb"/(?:home|Users|root|tmp|mnt|media|srv|opt|var|private|Volumes|work|workspace|scratch|content|kaggle|gpfs|lustre|nfs)/[\w.-]+"
    rb"|:(?:\\\\?|/)Users(?:\\\\?|/)[\w.-]+"
)
# What may precede a path, so that it is not part of a URL (other than file:) or of a relative path.
BEFORE_A_PATH = re.compile(rb"(?:\A|[^\w:/.~]|file:(?://)?|file://localhost)\Z", re.IGNORECASE)
LONG_RUN = 160  # letters of base64 without a break


@dataclass(frozen=True)
class Match:
    """Position and kind of a match. The value itself is not kept."""

    start: int
    end: int
    kind: str


@cache
def scanner() -> Any:
    """kingfisher's scanner. Compiling its rules takes four seconds the first time on a machine, later less than one.

    Raises:
        UserError: it is not installed. Then nothing is uploaded, since fewer rules than documented would be checked.
    """
    try:
        from kingfisher_sdk import DetectionPolicy, Rules, Scanner
    except ImportError as error:
        raise UserError(
            f"uploads are checked for secrets by kingfisher-secret-scanner, which cannot be imported ({error}): "
            "pip install 'kingfisher-secret-scanner>=1.5'"
        ) from error
    # Decoding is done here, for all rules; and no comment in a file may switch a rule off.
    policy = DetectionPolicy(inline_ignores=False, markup_context=False, cli_match_semantics=False, base64_max_depth=0)
    return Scanner(Rules(), base64=False, policy=policy)


class Rules:
    """The rules, together with the secrets of this machine's environment.

    Args:
        folder: the directory to upload; its own path counts as a path of this machine.
    """

    def __init__(self, folder: Path):
        self.scanner = scanner()
        values = [value.encode(errors="surrogateescape") for name, value in os.environ.items() if SECRET_VARIABLES.search(name)]
        self.values = sorted({value for value in values if len(value) >= 12})
        folders = {str(place.resolve()) for place in (Path.home(), Path.cwd(), folder, Path(tempfile.gettempdir()))}
        self.folders = [place.encode(errors="surrogateescape") for place in folders if place.count("/") > 1 or "\\" in place]

    def search(self, text: bytes, paths: bool = True) -> Iterator[Match]:
        """Yield everything in `text` that must not be published; absolute paths only if `paths` is set."""
        for finding in self.scanner.scan(text):
            if finding.visible and finding.rule_id.rsplit(".")[-1] not in REPLACED:
                location = finding.location
                # The rules' names are sentences, some with advice; their ids end in words such as "github-pat".
                kind = re.split(r"[./]", finding.rule_id)[-1]
                yield Match(location["start_offset"], location["end_offset"], f"a secret ({kind})")
        lower = text.lower()
        for kind, literals, rule in RULES:
            if not any(literal in (lower if kind in NEED_A_DIGIT else text) for literal in literals):
                continue
            for found in rule.finditer(text):
                if not _is_placeholder(kind, found) and not _in_a_long_run(text, *found.span()):
                    yield Match(*found.span(), kind)
        yield from self._literals(text, self.values, OWN_VALUE)
        if paths:
            for found in PATHS.finditer(text):
                drive = found[0].startswith(b":")  # on Windows, where the drive letter precedes it
                if drive or BEFORE_A_PATH.search(text[max(0, found.start() - 16) : found.start()]):
                    yield Match(*found.span(), PATH)
            yield from self._literals(text, self.folders, PATH)

    def _literals(self, text: bytes, literals: list[bytes], kind: str) -> Iterator[Match]:
        for literal in literals:
            start = text.find(literal)
            if start >= 0:
                yield Match(start, start + len(literal), kind)


def _is_placeholder(kind: str, found: re.Match[bytes]) -> bool:
    """Whether the value of a setting is a placeholder: `password=your-password`, `api_key = os.environ[...]`, `xxxxxxxx`."""
    if found.re.groups == 0:
        return False
    value = found[1]
    if EXAMPLES.match(value) or len(set(value)) < min(5, len(value)):
        return True
    return kind in NEED_A_DIGIT and not (re.search(rb"\d", value) and re.search(rb"[A-Za-z]", value))


def _in_a_long_run(text: bytes, start: int, end: int) -> bool:
    """Whether a match lies within a run of base64, where any short sequence occurs by chance."""
    before = re.search(rb"[\w+/-]*\Z", text[max(0, start - LONG_RUN) : start])
    assert before is not None  # it may be empty
    return len(before[0]) + (end - start) > LONG_RUN and len(before[0]) > LONG_RUN // 4
