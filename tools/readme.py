"""Write README.md from nbs/index.ipynb; with --check, only say whether it is in step."""

import argparse
import re
import sys
from pathlib import Path
from posixpath import normpath

import nbformat

ROOT = Path(__file__).resolve().parent.parent
HEADER = "<!-- generated from nbs/index.ipynb by tools/readme.py; do not edit -->"
DIRECTIVE = re.compile(r"^#\|\s*(.*)\n?", re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if README.md differs")
    check = parser.parse_args().check
    try:
        text = readme(nbformat.read(ROOT / "nbs/index.ipynb", as_version=4))
    except (OSError, ValueError) as error:
        print(f"nbs/index.ipynb: {error}", file=sys.stderr)
        return 1
    target = ROOT / "README.md"
    if not check:
        target.write_text(text, encoding="utf-8", newline="\n")
    elif not target.exists() or target.read_text(encoding="utf-8") != text:
        print("README.md is not what nbs/index.ipynb says; run: python tools/readme.py", file=sys.stderr)
        return 1
    return 0


def readme(notebook: nbformat.NotebookNode) -> str:
    "The notebook as Markdown, without cells that are marked `#| hide`."
    parts = [HEADER]
    for cell in notebook.cells:
        directives = {directive.strip() for directive in DIRECTIVE.findall(cell.source)}
        source = DIRECTIVE.sub("", cell.source).strip("\n")
        if cell.get("attachments"):
            raise ValueError("holds a picture; link a file of the repository instead")
        if "hide" in directives:
            continue
        if cell.cell_type == "markdown":
            parts.append(from_root(source))
        elif cell.cell_type == "code":
            shown = "echo: false" not in directives
            parts += [fence(source, "python")] * shown + [output(o) for o in cell.outputs if o.get("name") != "stderr"]
    return "\n\n".join(part for part in parts if part) + "\n"


def output(result: nbformat.NotebookNode) -> str:
    "One output of a cell as Markdown; a picture or an error raises."
    if result.output_type == "error":
        raise ValueError(f"a cell failed with {result.ename}; execute the notebook again")
    if result.output_type == "stream":
        return fence(result.text, "text")
    if any(kind.startswith("image/") for kind in result.data):
        raise ValueError("holds a picture; link a file of the repository instead")
    if "text/markdown" in result.data:
        return result.data["text/markdown"].strip("\n")
    return fence(result.data["text/plain"], "text")


def fence(text: str, language: str) -> str:
    "A fenced block; nothing for an empty text."
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).strip("\n")
    return f"```{language}\n{text}\n```" if text else ""


def from_root(markdown: str) -> str:
    "Links that start at nbs/ in the notebook, made to start where README.md lies; fenced code is left alone."
    def relink(match: re.Match) -> str:
        target = match[2]
        return match[0] if re.match(r"[a-z]+:|#|/", target) else f"{match[1]}{normpath('nbs/' + target)}{match[3]}"
    pieces = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(piece if i % 2 else re.sub(r"(\]\()([^)\s]+)(\))", relink, piece) for i, piece in enumerate(pieces))


if __name__ == "__main__":
    sys.exit(main())
