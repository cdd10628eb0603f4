#!/usr/bin/env python3
"""Fails when a Rust file or function of this repository has grown past what a reader can hold.

Limits (lines, tests not counted): a file 700, a function 120. From 500 and 70 on, which CONTRIBUTING.md
asks for, a file or function is named when VERBOSE=1 is set, and nothing more. A function that is long for a
reason says so in a comment right above it: `// size: one match, each arm a leaf`.

Only counted: `src/`. Not counted there: blocks under `#[cfg(test)]`, files named tests.rs, folders named tests.
"""

import os
import re
import subprocess
import sys

FILE_MAX, FILE_AIM = 700, 500
FUNCTION_MAX, FUNCTION_AIM = 120, 70

# A string, raw string, char or comment: blanked out, so that braces in it are not counted.
OPAQUE = re.compile(
    r"""
      //[^\n]*
    | /\*.*?\*/
    | \b(?:br|cr|r)(\#*)".*?"\1
    | "(?:\\.|[^"\\])*"
    | '(?:\\(?:u\{[^}]*\}|x..|.)|[^'\\])'
    """,
    re.VERBOSE | re.DOTALL,
)
FUNCTION = re.compile(r"\bfn\s+([A-Za-z_][A-Za-z0-9_]*)\s*[<(]")
TEST_BLOCK = re.compile(r"#\[cfg\((?:test|all\(test[^\]]*)\)\]")


def blank(match: re.Match) -> str:
    return re.sub(r"[^\n]", " ", match.group(0))


def block_end(text: str, start: int) -> int | None:
    """Offset of the brace that closes the first block after `start`; None where `;` comes first."""
    depth = square = 0
    for offset in range(start, len(text)):
        char = text[offset]
        if char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return offset
        elif char == "[":
            square += 1
        elif char == "]":
            square -= 1
        elif char == ";" and depth == 0 and square == 0:
            return None
    return None


def test_lines(code: str) -> set[int]:
    """Numbers (from 0) of the lines of every `#[cfg(test)]` block."""
    lines = set()
    for match in TEST_BLOCK.finditer(code):
        end = block_end(code, match.end())
        if end is not None:
            lines.update(range(code.count("\n", 0, match.start()), code.count("\n", 0, end) + 1))
    return lines


def excused(lines: list[str], index: int) -> bool:
    """Whether the comments and attributes right above line `index` hold `// size: reason`."""
    while index > 0:
        index -= 1
        line = lines[index].strip()
        if re.match(r"// size: \S", line):
            return True
        if not line.startswith(("//", "#[", ")]")):
            return False
    return False


def check(path: str) -> tuple[list[str], list[str]]:
    with open(path, encoding="utf-8") as file:
        source = file.read()
    lines = source.splitlines()
    code = OPAQUE.sub(blank, source)
    tests = test_lines(code)
    without_tests = len(lines) - len(tests)
    faults, notes = [], []
    if without_tests > FILE_AIM:
        message = f"{path}: {without_tests} lines without tests"
        (faults if without_tests > FILE_MAX else notes).append(f"{message} (limit {FILE_MAX}, aim {FILE_AIM})")
    for match in FUNCTION.finditer(code):
        first = code.count("\n", 0, match.start())
        end = block_end(code, match.end() - 1)
        if end is None or first in tests:
            continue
        length = code.count("\n", match.start(), end) + 1
        if length > FUNCTION_AIM and not excused(lines, first):
            message = f"{path}:{first + 1}: fn {match.group(1)} has {length} lines"
            (faults if length > FUNCTION_MAX else notes).append(f"{message} (limit {FUNCTION_MAX}, aim {FUNCTION_AIM})")
    return faults, notes


def main() -> int:
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    # Untracked files too: a fault is cheapest before the commit.
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.rs"],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()
    paths = [
        path
        for path in sorted(set(listing))
        if re.search(r"(^|/)src/", path) and not re.search(r"(^|/)tests(/|\.rs$)", path) and os.path.exists(path)
    ]
    faults, notes = [], []
    for path in paths:
        new_faults, new_notes = check(path)
        faults += new_faults
        notes += new_notes
    for note in notes if os.environ.get("VERBOSE") else []:
        print(f"length: note: {note}")
    for fault in faults:
        print(f"length: {fault}", file=sys.stderr)
    if faults:
        print("length: split by purpose; or, above a function, say why: `// size: REASON`", file=sys.stderr)
        return 1
    print(f"length: {len(paths)} files within their limits, {len(notes)} above the aim (VERBOSE=1 names them)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
