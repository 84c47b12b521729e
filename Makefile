# make demo          set up, train the built-in model on the demo conversations, ask it ten questions, open the chat
# make demo SERVE=0  the same without the chat
# make test          set up, check style and types, run every test
# make mutants       small wrong changes to the source, each of which a test must notice (about a quarter of an hour)
# Without an NVIDIA GPU: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu   (torch's small CPU build)
SERVE ?= 1
export TORCH_INDEX PYTHON
BIN := .venv/bin

.PHONY: demo test mutants setup lint clean
.DEFAULT_GOAL := demo

demo:
	@.ci/need python3-venv libgomp1
	@.ci/setup train
	@started=$$(date +%s); $(BIN)/tunesmith run recipes/demo.yaml \
	  && $(BIN)/python benchmarks/demo_questions.py runs/demo $$started
ifneq ($(SERVE),0)
	@$(BIN)/tunesmith chat runs/demo
endif

test: setup lint
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

mutants: setup
	@$(BIN)/python tests/mutants.py --write

setup:
	@.ci/need python3-venv libgomp1 chromium
	@.ci/setup dev

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean:   # leaves runs/ and the cache of base models alone
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build src/*.egg-info
