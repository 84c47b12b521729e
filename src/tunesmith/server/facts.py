"""What a GGUF file says of itself, for who chats with it: name, base, data, type, licence."""

from pathlib import Path

import gguf

from tunesmith.gguf.metadata import read_singles

MOST_LISTED = 4  # bases and data sets; a merge of more says so itself


def model_facts(path: Path) -> list[tuple[str, str]]:
    """What is known, each with its name; what the file does not say is left out."""
    said = read_singles(path)

    def listed(kind: str) -> str:
        names = [
            said.get(f"general.{kind}.{n}.name") or said.get(f"general.{kind}.{n}.repo_url") or ""
            for n in range(MOST_LISTED)
        ]
        return ", ".join(str(name) for name in names if name)

    size = said.get("general.size_label", "")
    facts = {
        "Model": f"{said.get('general.name', path.stem)}{f', {size} parameters' if size else ''}",
        "Base": listed("base_model"),
        "Data": listed("dataset"),
        "Type": _type(said.get("general.file_type")),
        "Licence": str(said.get("general.license.name") or said.get("general.license") or ""),
        "About": str(said.get("general.description", "")),
    }
    return [(name, text) for name, text in facts.items() if text]


def _type(number: object) -> str:
    """The name of a number in llama.cpp's list, such as Q4_K_M."""
    try:
        return gguf.LlamaFileType(number).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        return ""
