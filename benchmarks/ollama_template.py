"""Go's own text/template on the Modelfile's TEMPLATE, against the chat template: every template of the tests.

usage: python benchmarks/ollama_template.py     needs go (apt-get install golang-go); a row for each template
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from test_modelfile import TEMPLATES, tokenizer_with

from tunesmith.gguf.modelfile import go_template, learn_turns, sample_conversations
from tunesmith.release.modelfile import renderer

PROGRAM = """package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Message struct{ Role, Content string }

func main() {
	var jobs []struct {
		Template, System string
		Messages         []*Message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	found := []string{}
	for _, job := range jobs {
		var text strings.Builder
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(job.Template))
		if err := parsed.Execute(&text, map[string]any{"System": job.System, "Messages": job.Messages}); err != nil {
			panic(err)
		}
		found = append(found, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(found)
}
"""


def main() -> int:
    """Print how many conversations are rendered alike; 1 if one is not."""
    jobs, wanted, names = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, template in TEMPLATES.items():
            render = renderer(tokenizer_with(Path(folder, name), template), "2026-01-01")
            turns = learn_turns(render)
            for messages in sample_conversations(turns.system is not None) if turns else ():
                system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
                jobs.append({"Template": go_template(turns), "System": system, "Messages": messages})
                wanted.append(render(messages, True))
                names.append(name)
        source = Path(folder, "main.go")
        source.write_text(PROGRAM)
        done = subprocess.run(["go", "run", source], input=json.dumps(jobs), capture_output=True, text=True, check=True)
    alike = [ours == theirs for ours, theirs in zip(json.loads(done.stdout), wanted, strict=True)]
    print("| template | conversations | alike |\n|---|---|---|")
    for name in TEMPLATES:
        of_it = [same for same, its in zip(alike, names, strict=True) if its == name]
        print(f"| {name} | {len(of_it)} | {sum(of_it)} |")
    return 0 if alike and all(alike) else 1


if __name__ == "__main__":
    sys.exit(main())
