"""The table of commands, and what is known of a command line before torch is imported."""

import inspect
import subprocess
import sys

import pytest
from conftest import ROOT
from jsonargparse.typing import PositiveInt

from lit_pref.cli import command_parser, main
from lit_pref.commands.run_options import RunOptions
from lit_pref.commands.table import COMMANDS, Command, command_named, command_of, program_help
from lit_pref.errors import UsageError

DPO = str(ROOT / "configs" / "dpo.yaml")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_is_a_documented_typed_function(command: Command):
    function = command.load()
    parameters = list(inspect.signature(function).parameters.values())
    assert function.__doc__ and all(parameter.annotation is not parameter.empty for parameter in parameters)
    assert command.needs_run == bool(parameters and parameters[0].annotation is RunOptions)
    own = parameters[1:] if command.needs_run else parameters
    actions = {action.dest: action for action in command_parser(command, function)._actions}
    for parameter in own:
        assert actions[parameter.name].help, f"the docstring says nothing of {parameter.name}"
    assert f"  {command.name} " in program_help() and command.example.startswith(f"{command.name} ")


def test_a_command_of_two_words_is_found_by_both_and_answered_with_the_nearest():
    command, options = command_of(["ablate", "report", "--config", "x"])
    assert (command.name, options) == ("ablate report", ["--config", "x"])
    assert command_of(["ablate", "--config", "x"])[0].name == "ablate"
    assert command_of(["export", "x"])[0].name == "export"
    with pytest.raises(UsageError, match=r"unknown command 'ablate reprt'; .*; did you mean ablate report"):
        command_of(["ablate", "reprt"])


def test_an_unknown_command_is_answered_with_all_that_are_known():
    with pytest.raises(
        UsageError, match=r"unknown command 'scoer'; known: fit, validate, test, .*; did you mean score"
    ):
        command_named("scoer")


BEFORE_TORCH: list[tuple[list[str], str]] = [
    *(([*one.name.split(), "--help"], "usage: python -m lit_pref") for one in COMMANDS if one.name != "fit"),
    (
        ["fit", "--trainr.max_steps", "1", "--config", DPO],
        "--trainr.max_steps; did you mean --trainer.max_steps?",
    ),
    (["fit", "--config", "mmop.yaml"], "config file mmop.yaml does not exist"),
    (["fit", "--closing_words", "false", "--config", DPO], "closing_words is called print_summary now"),
    (["fit", "--run_dir", "x"], "missing: --model.objective"),
    (["check", "--config", DPO, "--html"], "--html needs a value"),
    (["check", "--config", DPO, "--htm", "x"], "unknown option --htm; did you mean --html?"),
    (["fit", "--config", DPO, "--data.trian", "x"], "unknown option --data.trian; did you mean --data.train"),
    (["fit", "--config", DPO, "--data.trian.path=x"], "--data.trian.path; did you mean --data.train.path"),
    (["check", "--config", DPO, "--model.layuot", "x"], "--model.layuot; did you mean --model.layout"),
    (["score", "--verify", "0", "--config", DPO], "verify: expected a whole number above 0 or null, got '0'"),
    (["score", "--list", "--config", DPO], "--list takes no other option"),
    (["select", "--config", DPO], "missing: --out; --help describes them"),
    (["select", "--out", "x.csv"], "--out chosen.jsonl or --out chosen.parquet, not 'x.csv'"),
    (["select", "--selection.criterion", "x"], "--selection.criterion; did you mean --data.selection.criterion?"),
    (["fit", "--seed_everythin.x", "1"], "unknown option --seed_everythin.x"),
    (["select", "--ot", "x", "--config", DPO], "unknown option --ot; did you mean --out?"),
    (["score", "--lst"], "unknown option --lst; did you mean --list?"),
    (["score", "--verfy", "4", "--config", DPO], "unknown option --verfy; did you mean --verify?"),
    (["fit", "--verbose", "--config", DPO], "unknown option --verbose"),
    (["validate", "--verbos", "--config", DPO], "unknown option --verbos; did you mean --verbose?"),
    (["evaluate", "--protocol", "rewardbench", "--out", "y"], "did you mean reward_bench"),
    (["evaluate", "--out", "y"], "evaluate needs --protocol (one of pairs, reward_bench"),
    (["evaluate", "--protocol", "pairs", "--model", "x", "--data", "nowhere.jsonl", "--out", "y"], "nowhere.jsonl"),
    (["export", "--ckpt_path", "x"], "missing: --out"),
    (["ablate"], "missing: --config"),
    (["ablate", "--config", "x.yaml"], "config file x.yaml does not exist"),
    (["ablate", "report", "--dry_run"], "unknown option --dry_run"),
    (["export", "--ckpt_path", "last", "--out", "y"], "`last`: name the file, such as --ckpt_path runs/NAME/"),
    (["export", "--ckpt_path", "x", "--outt", "y"], "unknown option --outt; did you mean --out?"),
    (["generate", "--prompts", "x", "--out", "y"], "give either --model FOLDER or --endpoint URL; neither is given"),
    (["generate", "--model", "x", "--out", "y"], "missing: --prompts"),
    (["generate", "--prompt", "x"], "unknown option --prompt; did you mean --prompts?"),
    (["generate", "--samples", "0"], "samples: expected a whole number above 0, got '0'"),
    (["generate", "--bad_rows", "no"], "bad_rows: expected one of strict, lenient, got 'no'"),
    (["export", "--ckpt_path", "x/y", "--out", "z"], "checkpoint x/y does not exist; the checkpoints of a run are in"),
]


def test_help_and_mistakes_of_a_commands_own_options_need_no_heavy_import():
    code = """if True:
        import sys, io, contextlib
        from lit_pref.__main__ import main
        for line in sys.stdin.read().splitlines():
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                try: main(line.split("|"))
                except SystemExit: pass
            print(out.getvalue().strip().splitlines()[0])
        print({"torch", "lightning", "transformers", "pyarrow", "pandas"} & set(sys.modules))
    """
    typed = "\n".join("|".join(words) for words, _ in BEFORE_TORCH)
    done = subprocess.run([sys.executable, "-c", code], input=typed, capture_output=True, text=True, check=True)
    *lines, heavy = done.stdout.splitlines()
    assert heavy == "set()"
    assert len(lines) == len(BEFORE_TORCH)
    for line, (words, said) in zip(lines, BEFORE_TORCH, strict=True):
        assert said in line, words


def test_the_help_of_a_class_shows_its_formula_whatever_the_command_requires(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["select", "--data.selection.help", "AlignmentPotential"])
    said = capsys.readouterr().out
    assert ended.value.code in (0, None)
    assert said.startswith("usage: python -m lit_pref COMMAND ") and "z(|m|) - weight * z(|h_w - h_l|)" in said
    assert "implicit margin's z-score" in said and "Args:" not in said and "learnt yet:" not in said


def test_a_number_above_0_is_required_in_words_whether_or_not_it_may_be_null():
    def typed(run: RunOptions, n: PositiveInt, k: PositiveInt = 3, m: PositiveInt | None = None) -> None:
        """Do nothing."""

    parser = command_parser(Command("typed", "", "", True, "typed"), typed)
    for name, accepted in (("n", ""), ("k", ""), ("m", " or null")):
        for value in ("0", "two"):
            with pytest.raises(UsageError) as refused:
                parser.parse_args(["--n=1", f"--{name}={value}"])
            assert str(refused.value) == f"{name}: expected a whole number above 0{accepted}, got '{value}'"


def test_the_help_of_a_command_names_types_in_words():
    said = {name: command_parser(c, c.load()).format_help() for c in COMMANDS for name in [c.name]}
    assert "[--config FILE] [--verify VERIFY] [--list]" in said["score"] and "{true,false}" not in said["score"]
    for text in said.values():
        assert "PositiveInt" not in text and "<class" not in text


def test_options_of_a_run_keep_their_order_and_values_among_those_of_a_command(capsys: pytest.CaptureFixture[str]):
    from lit_pref.option_split import keep_options

    command = command_named("check")
    typed = ["--model", "--config", "a.yaml", "--json=out.json", "--model.policy.path", "p", "--html", "x", "--a", "-1"]
    own, rest = keep_options(typed, command_parser(command, command.load()))
    assert own == ["--model", "--json=out.json", "--html=x"]
    assert rest == ["--config", "a.yaml", "--model.policy.path", "p", "--a", "-1"]
