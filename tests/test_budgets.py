"""The limits of STYLE.md section 3 that ruff has no rule for, or that should hold whatever a file's ignores say."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("optimizer/shallowvit", "benchmarks/shallowvit_bench", "kernels/shallowvit_kernels")
FILE_LINES, FUNCTION_LINES, PARAMETERS = 600, 60, 8
KERNEL_LINES = 100  # of a Triton function, whose registers can't be handed to another; its parameters are the launch's
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def _functions(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def _parameters(function):
    names = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    names += [extra for extra in (function.args.vararg, function.args.kwarg) if extra]
    return [name for name in names if name.arg not in ("self", "cls")]


def test_budgets_look_at_every_package():
    assert all(any(path.is_relative_to(ROOT / package) for path in FILES) for package in PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_budgets_of_a_file_are_kept(path):
    lines = len(path.read_text().splitlines())
    assert lines <= FILE_LINES
    in_cli = "cli" in path.relative_to(ROOT).parts  # a command has as many parameters as options
    for function in _functions(path):
        long = function.end_lineno - function.lineno + 1
        if any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list):
            assert function.end_lineno - function.body[0].lineno + 1 <= KERNEL_LINES
            continue
        # a command's length is its options too; what runs is counted from the first line behind them
        if in_cli:
            long = function.end_lineno - function.body[0].lineno + 1
        assert long <= FUNCTION_LINES, f"{function.name} has {long} lines"
        assert in_cli or len(_parameters(function)) <= PARAMETERS, f"{function.name} has too many parameters"
