.PHONY: check format lint typecheck test

check: format lint typecheck test

format:
	ruff check --fix .
	ruff format .

lint:
	ruff check .
	ruff format --check .

typecheck:
	.ci/typecheck

test:
	pytest
