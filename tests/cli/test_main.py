"""Bad input ends with one message that names the fault and the way out, and with an exit code that means something."""

import json
import subprocess
import sys

import pytest


def refused(done, *parts):
    """Assert exit code 2 and one message with all the parts."""
    assert done.code == 2
    assert done.err.count("error: ") == 1
    # Nothing but progress stands before the message.
    assert all("|" in line for line in done.err.partition("error: ")[0].splitlines() if line)
    for part in parts:
        assert part in done.err.partition("error: ")[2]
    return done


def rows(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_help_names_the_commands_and_exit_codes(holdfast):
    done = holdfast("--help")
    assert done.code == 0
    for word in ("demo", "run", "certify", "verify", "CERTIFIED", "NSF", "INVALID"):
        assert word in done.out


def test_unknown_command_and_option(holdfast):
    assert holdfast("alig").code == 2
    assert "No such option" in holdfast("verify", "--fast").err


def test_message_without_traceback_from_a_shell(tmp_path):
    command = [sys.executable, "-m", "holdfast", "run", str(tmp_path / "none.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no recipe at ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["nowhere.yaml", "hc_rlhf/pokcet"])
def test_wrong_recipe_path(holdfast, name):
    refused(holdfast("run", name), f"no recipe at {name}; give the path", "hc_rlhf/pocket")


def test_recipe_without_a_system(holdfast, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("systm: hc_rlhf\n", encoding="utf-8")
    refused(holdfast("run", file), "names no system", "hc_rlhf", "safe_rlhf_v")


def test_recipe_of_an_unknown_system(holdfast):
    refused(holdfast("run", "hc_rlhf/pocket", "system=ppo"), "no system called 'ppo'", "hc_rlhf")


def test_unknown_settings_are_refused_with_suggestions(holdfast, tmp_path):
    done = holdfast("run", "hc_rlhf/pocket", "online.iteration=5", "constraint.tau=0.1", "-o", tmp_path / "run")
    refused(done, "online.iteration: no such setting", "did you mean iterations?", "constraint.tau: no such setting")
    assert not (tmp_path / "run").exists(), "nothing is written before the settings are understood"


@pytest.mark.parametrize(
    "override, said",
    [
        ("constraint.delta=1.5", "constraint.delta: input should be less than 1; got 1.5"),
        ("constraint.delta=0", "constraint.delta: input should be greater than 0; got 0"),
        ("constraint.n_safety=1", "constraint.n_safety: input should be greater than or equal to 2; got 1"),
        ("seed=-1", "seed: input should be greater than or equal to 0; got -1"),
        ("text.max_length=many", "text.max_length: input should be a valid integer"),
        ("method=best", "method: input should be 'pessimistic', 'mean' or 'reward_only'; got 'best'"),
        ("constraint.threshold=1.5", "constraint.threshold is a share between 0 and 1, not 1.5"),
        ("constraint.direction=at_least", "constraint.direction must be at_most"),
        ("seed", "'seed' is no override; write key=value"),
    ],
)
def test_setting_out_of_range(holdfast, override, said):
    refused(holdfast("run", "hc_rlhf/pocket", override), said)


def test_demo_and_study_know_their_names(holdfast, tmp_path):
    refused(holdfast("demo", "--method", "best", "-o", tmp_path / "run"), "method: input should be 'pessimistic'")
    refused(holdfast("study", "nonsense"), "no study called 'nonsense'; known are ", "hc_rlhf")


@pytest.mark.parametrize(
    "limit, said",
    [
        ({"threshold": 1.5}, "tau of a rate lies between 0 and 1; 1.5 does not"),
        ({"threshold": 0.0}, "tau of a rate lies between 0 and 1; 0 does not"),
        ({"delta": 0.7}, "limit.delta: input should be less than 0.5; got 0.7"),
        ({"treshold": 0.1}, "limit.treshold: no such setting (value 0.1); did you mean threshold?"),
    ],
)
def test_limit_out_of_range(holdfast, safety_test, limit, said):
    refused(holdfast("certify", "plan", safety_test(limit=limit)), said)


def test_data_that_are_not_there(holdfast, tmp_path):
    refused(holdfast("data", "check", tmp_path / "none.jsonl"), "no file or folder at", "none.jsonl")


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "it holds no rows; give a file with data"),
        ("\n\n", "it holds no rows; give a file with data"),
        ('{"prompt": "a", "chosen": "b"}\n', "no known format fits its columns (chosen, prompt)"),
        ('{"prompt": \n', "not valid JSON"),
        ("[1, 2]\n", "a row must be an object with named columns, not "),
    ],
)
def test_data_that_cannot_be_used(holdfast, models, tmp_path, content, said):
    file = tmp_path / "bad.jsonl"
    file.write_text(content, encoding="utf-8")
    refused(holdfast("generate", models.policy, file), "bad.jsonl", said)
    refused(holdfast("data", "check", file), "bad.jsonl", said)


def test_malformed_row_is_named_with_file_and_row(holdfast, models, tmp_path):
    file = rows(tmp_path / "mixed.jsonl", {"prompt": "Hello?"}, {"prompt": 7}, {"promt": "Hello?"})
    done = refused(holdfast("generate", models.policy, file, "-o", tmp_path / "out.jsonl"), "2 rows cannot be used")
    assert "mixed.jsonl row 2: " in done.err
    assert "mixed.jsonl row 3: " in done.err
    assert "on_bad_row: skip" in done.err


def test_missing_column_is_named(holdfast, tmp_path):
    file = rows(tmp_path / "pairs.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    done = holdfast("data", "check", file, "--format", "dual")
    refused(done, "row 1: no column responses; format dual needs it")


def test_unknown_format_is_named(holdfast, tmp_path):
    file = rows(tmp_path / "pairs.jsonl", {"prompt": "a"})
    refused(
        holdfast("data", "check", file, "--format", "parquet"), "format: input should be 'auto', 'dual'", "'parquet'"
    )


def test_data_check_reports_rows_labels_lengths_and_leaks(holdfast, world):
    done = holdfast(
        "data", "check", f"a={world / 'pairs.jsonl'}", f"b={world / 'pairs.jsonl'}", "--tokenizer", world / "policy"
    )
    assert done.code == 0
    for words in ("usable rows", "safer: response 0", "prompt tokens", "answers cut at the window", "Leaks"):
        assert words in done.out
    assert "bad rows" in done.out


def test_data_check_counts_bad_rows_and_goes_on(holdfast, tmp_path):
    file = rows(tmp_path / "mixed.jsonl", {"prompt": "Hello?"}, {"prompt": 7})
    done = holdfast("data", "check", file)
    assert done.code == 0
    assert "1 x " in done.out


def test_prompt_longer_than_the_window(holdfast, models, world, tmp_path):
    file = rows(tmp_path / "long.jsonl", {"id": "endless", "prompt": "how " * 300})
    refused(holdfast("generate", models.policy, file), "row endless: its prompt has 304 tokens and the window 256")
    short = rows(tmp_path / "short.jsonl", {"prompt": "how can I"})
    done = holdfast("generate", models.policy, short, "--max-new-tokens", 300)
    refused(done, "max_new_tokens=300 exceeds the model's window of 256", "lower max_new_tokens")
    done = holdfast("score", models.cost, world / "conversations.jsonl", "--max-length", 4)
    refused(done, "row conversation-0: its prompt has", "the window 4", "raise max_length")


def test_tokenizer_without_a_chat_template(holdfast, models, world, tmp_path):
    import shutil

    folder = shutil.copytree(models.policy, tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    done = holdfast("generate", folder, world / "prompts.jsonl")
    refused(done, "the tokenizer brings no chat template", "plain", "chatml")


def test_model_that_is_not_there(holdfast, world, tmp_path):
    refused(holdfast("generate", tmp_path / "none", world / "prompts.jsonl"), "no model folder at", "none")
    refused(holdfast("score", tmp_path / "none", world / "pairs.jsonl"), "none lacks holdfast.json")
    (tmp_path / "empty").mkdir()
    refused(holdfast("generate", tmp_path / "empty", world / "prompts.jsonl"), "holds no config.json")


def test_policy_where_a_score_model_is_needed(holdfast, models, world):
    refused(
        holdfast("score", models.policy, world / "pairs.jsonl"), "holds a policy; give the folder of a reward or cost"
    )


def test_prompts_where_answers_are_needed(holdfast, models, world):
    refused(holdfast("score", models.cost, world / "prompts.jsonl"), "holds no answered conversation")


def test_score_writes_one_row_per_answer(holdfast, models, world, tmp_path):
    out = tmp_path / "new" / "scores.jsonl"
    done = holdfast("score", models.cost, world / "pairs.jsonl", "--out", out, "--max-length", 96)
    assert (done.code, done.out) == (0, f"200 rows in {out}\n")
    found = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["id"] for row in found[:3]] == ["pair-0/0", "pair-0/1", "pair-1/0"]
    assert all(isinstance(row["cost"], float) and row["response"] for row in found)


def test_rows_that_cannot_be_scored_are_named_in_the_file(holdfast, models, tmp_path):
    chat = [{"role": "user", "content": "how can I"}, {"role": "assistant", "content": "first"}]
    file = rows(tmp_path / "chats.jsonl", {"messages": chat[:1]}, {"messages": chat})
    out = tmp_path / "scores.jsonl"
    assert holdfast("score", models.cost, file, "-o", out, "--max-length", 96).code == 0
    found = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["id"] for row in found] == ["chats-2", "chats-1"]
    assert found[1] == {"id": "chats-1", "skipped": "it ends without an answer"}


def test_score_with_audit_writes_what_the_scores_are_worth(holdfast, models, world, tmp_path):
    out = tmp_path / "scores.jsonl"
    done = holdfast("score", models.cost, world / "pairs.jsonl", "-o", out, "--max-length", 96, "--audit")
    assert done.code == 0
    for words in ("audit of 200 answers", "pairs in the right order", "by length alone", "calibration error"):
        assert words in done.out
    # The head of this model is zero.
    assert "warning: cost: 100% of the pairs tie exactly; is the model trained, and its head loaded?" in done.out
    assert len(out.read_text("utf-8").splitlines()) == 200
    told = json.loads((tmp_path / "audit.json").read_text("utf-8"))
    assert told["scores"]["cost"]["pairs"]["accuracy"]["value"] == 0.5
    assert told["model"]["folder"] == str(models.cost)
    assert told["invariance"]["checked"] > 10
    page = (tmp_path / "audit.html").read_text("utf-8")
    assert "Holdfast audit of scores" in page
    assert str(tmp_path / "audit.html") in done.out


def test_score_without_audit_writes_scores_alone(holdfast, models, world, tmp_path):
    holdfast("score", models.cost, world / "pairs.jsonl", "-o", tmp_path / "scores.jsonl", "--max-length", 96)
    assert [file.name for file in tmp_path.iterdir()] == ["scores.jsonl"]


def test_a_mixture_is_scored_and_audited_too(holdfast, models, world, tmp_path):
    out = tmp_path / "scores.jsonl"
    done = holdfast("score", models.mixture, world / "pairs.jsonl", "-o", out, "--max-length", 96, "--audit")
    assert done.code == 0
    assert set(json.loads(out.read_text("utf-8").splitlines()[0])) == {"id", "score", "brief", "kind", "response"}
    assert list(json.loads((tmp_path / "audit.json").read_text("utf-8"))["scores"]) == ["score", "brief", "kind"]


def test_scores_that_are_not_finite_stop_and_name_the_rows(holdfast, models, tmp_path):
    chat = [{"role": "user", "content": "how can I"}, {"role": "assistant", "content": "first"}]
    sick = [chat[0], {"role": "assistant", "content": f"first {models.poison}"}]
    file = rows(tmp_path / "chats.jsonl", {"messages": chat}, {"messages": sick})
    out = tmp_path / "scores.jsonl"
    done = holdfast("score", models.sick, file, "-o", out, "--max-length", 96)
    assert done.code == 3
    assert "1 of 2 conversations got scores that are not finite (rows chats-2)" in done.err
    assert not out.exists()


def test_generate_is_repeatable_and_keeps_ids(holdfast, models, world, tmp_path):
    options = ("-n", 2, "--max-new-tokens", 4, "--seed", 3)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join((world / "prompts.jsonl").read_text("utf-8").splitlines(True)[:5]), "utf-8")
    first, second, other = (tmp_path / f"{name}.jsonl" for name in ("first", "second", "other"))
    for out in (first, second):
        assert holdfast("generate", models.policy, prompts, "-o", out, *options).code == 0
    holdfast("generate", models.policy, prompts, "-o", other, "-n", 2, "--max-new-tokens", 4, "--seed", 4)
    assert first.read_text("utf-8") == second.read_text("utf-8") != other.read_text("utf-8")
    found = [json.loads(line) for line in first.read_text("utf-8").splitlines()]
    assert [row["id"] for row in found] == [f"prompt-{i // 2}" for i in range(10)]
    assert {row["finish"] for row in found} <= {"stop", "length"}


def test_generate_at_temperature_zero_is_greedy(holdfast, models, tmp_path):
    prompts = rows(tmp_path / "prompts.jsonl", {"prompt": "how can I"})
    out = tmp_path / "out.jsonl"
    options = ("-n", 3, "--max-new-tokens", 4, "-o", out)
    assert holdfast("generate", models.policy, prompts, "--temperature", 0, *options).code == 0
    assert len({json.loads(line)["response"] for line in out.read_text("utf-8").splitlines()}) == 1
    done = holdfast("generate", models.policy, prompts, "--temperature", -1, *options)
    refused(done, "temperature: input should be greater than 0; got -1.0")


@pytest.mark.parametrize("words, said", [(("-n", 0), "-n"), (("--max-new-tokens", 0), "max_new_tokens")])
def test_generate_refuses_numbers_that_mean_nothing(holdfast, models, world, words, said):
    done = holdfast("generate", models.policy, world / "prompts.jsonl", *words)
    assert done.code == 2
    assert said in done.err


def test_output_that_cannot_be_written(holdfast, models, tmp_path):
    prompts = rows(tmp_path / "prompts.jsonl", {"prompt": "how can I"})
    done = holdfast("generate", models.policy, prompts, "--max-new-tokens", 2, "-o", tmp_path)
    assert done.code == 3
    assert str(tmp_path) in done.err
    done = holdfast("generate", models.policy, prompts, "--max-new-tokens", 2, "-o", prompts / "out.jsonl")
    assert done.code == 3


def test_env_names_versions_and_processors(holdfast):
    done = holdfast("env")
    assert done.code == 0
    for word in ("holdfast", "torch", "transformers", "cores", "memory free", "accelerators"):
        assert word in done.out


def test_report_of_something_that_is_no_run(holdfast, tmp_path):
    refused(holdfast("report", tmp_path), "is no run folder", "give the folder a run has written")


@pytest.mark.parametrize(
    "words, said",
    [
        (("env",), "env works on one process, and a launcher started 2; start it alone"),
        (("certify", "run", "test.yaml"), "certify works on one process"),
        (("sweep", "hc_rlhf/pocket", "--over", "a=1,2"), "start it alone, and give the launcher as --launcher"),
    ],
)
def test_what_several_processes_would_do_several_times_is_refused(holdfast, monkeypatch, words, said):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(holdfast(*words), said)


def test_a_launcher_of_one_process_is_none(holdfast, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert holdfast("env").code == 0


@pytest.mark.parametrize("rank, said", [("0", "error: no recipe"), ("1", "process 1: error: no recipe")])
def test_an_error_says_whose_it_is(holdfast, monkeypatch, rank, said):
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert holdfast("run", "nowhere").err.startswith(said)
