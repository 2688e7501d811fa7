"""Configuration: what is refused, how it is said, and that defaults and overrides mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from east_ray.arms import paper_arms, sweep_arms
from east_ray.config.load import Arm, Config, from_dict, load
from east_ray.records import UserError

MINIMAL = {"model": {"path": "m"}, "questions": {"train": "q.jsonl"}}


def test_defaults_are_the_papers_values() -> None:
    config = from_dict(MINIMAL, "here")
    assert (config.sampling.num_samples, config.sampling.max_new_tokens) == (128, 2048)
    assert (config.training.epochs, config.training.batch_size, config.training.warmup_ratio) == (3, 16, 0.1)
    assert [config.for_arm(arm).weighting.exponent for arm in config.arms] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modle": {}}, ["modle", "did you mean model?"]),
        ({"arms": []}, ["arms", "at least 1 item"]),
        ({"run": {"dir": ""}}, ["run.dir", "at least 1 character"]),
        ({"training": {"lora": 16}}, ["training.lora: this is a section: set its keys, rank, alpha"]),
        ({"training": {"lora": {"target_modules": "q_proj,lm_head"}}}, ["target_modules names lm_head"]),
        ({"num_samples": 3}, ["unknown key num_samples; did you mean sampling.num_samples?"]),
        ({"arms": [{"nam": "a"}]}, ["unknown key arms.0.nam; did you mean arms.0.name?"]),
        ({"arms": [{"name": "a/b"}]}, ["arms.0.name: use letters, digits", "'a/b'"]),
        ({"sampling": {"num_sample": 3}}, ["sampling.num_sample", "did you mean sampling.num_samples?"]),
        ({"training": {"lora": {"rnk": 3}}}, ["training.lora.rnk", "training.lora.rank"]),
        ({"training": {"batch_size": 6}}, ["training", "batch_size=6", "micro_batch_size x workers = 4 x 1 = 4"]),
        ({"training": {"loss": "kto", "micro_batch_size": 1}}, ["micro_batch_size must be at least 2"]),
        ({"sampling": {"num_samples": "many"}}, ["sampling.num_samples", "'many'"]),
        ({"weighting": {"mapping": "linear"}}, ["weighting", "range"]),
        ({"sampling": {"min_engines": 3, "max_engines": 2}}, ["max_engines=2 is below min_engines=3"]),
        (
            {"sampling": {"gpus_per_engine": 1, "tensor_parallel_size": 2}},
            ["gpus_per_engine=1", "= 2; make them equal"],
        ),
        ({"weighting": {"mapping": "linear", "range": 1, "clip": 3}}, ["clip does not go with"]),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, ["different names"]),
        ({"questions": {"train": "q", "chat_template_arguments": {"tokenize": True}}}, ["cannot hold tokenize"]),
        ({"arms": [{"name": "a", "set": {"sampling.num_samples": 3}}]}, ["sampling.num_samples", "arms share samples"]),
    ],
)
def test_a_wrong_setting_is_refused_with_its_dotted_name(change: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        from_dict({**MINIMAL, **change}, "here.toml")
    assert all(word in str(caught.value) for word in ["here.toml", *words])


def test_a_missing_required_key_says_how_to_give_it() -> None:
    with pytest.raises(UserError, match=r"model\.path is required.*--set model\.path="):
        from_dict({"model": {}, "questions": {"train": "q"}}, "here")


def test_a_misspelt_section_is_named_before_the_section_it_leaves_missing() -> None:
    with pytest.raises(UserError) as caught:
        from_dict({"modle": {"path": "m"}, "questions": {"train": "q"}}, "here")
    assert str(caught.value).splitlines() == [
        "here: unknown key modle; did you mean model?",
        "here: model is required; add a section [model] with path",
    ]


def test_an_arms_wrong_setting_is_found_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"arm 'a': unknown key weighting.exponnent; did you mean weighting.exponent\?"):
        from_dict({**MINIMAL, "arms": [{"name": "a", "set": {"weighting.exponnent": 2}}]}, "here")


def test_overrides_parse_toml_values_and_bare_words(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[model]\npath = "m"\n[questions]\ntrain = "q"\n')
    config = load(
        file, ["training.loss=dpo", "training.dpo.beta=0.1", "sampling.num_samples=8", "training.lora.rank=4"]
    )
    assert (config.training.beta, config.sampling.num_samples, config.training.lora.rank) == (0.1, 8, 4)  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["[model\n", "path = \x00", "a" * 10 + "= = 1"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"c\.toml"):
        load(file)


@pytest.mark.parametrize("override", ["nothing", "model=3", "model.path.deeper=1"])
def test_a_malformed_override_is_refused(tmp_path: Path, override: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[model]\npath = "m"\n[questions]\ntrain = "q"\n')
    with pytest.raises(UserError):
        load(file, [override])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(sorted(Config.model_fields)),
    json_values
    | st.dictionaries(st.sampled_from(["path", "train", "loss", "lora", "set", "name", "seed", "range"]), json_values),
)
def test_no_value_in_any_section_escapes_as_anything_but_a_user_error(section: str, value: object) -> None:
    try:
        from_dict({**MINIMAL, section: value}, "here")
    except UserError as error:
        assert "here" in str(error)


def test_operational_settings_are_no_part_of_identity() -> None:
    config = from_dict(MINIMAL, "here")
    assert "max_engines" not in config.sampling.identity()
    assert config.sampling.identity()["num_samples"] == 128


def test_settings_that_finished_runs_do_not_know_count_only_once_they_are_set() -> None:
    questions = from_dict(MINIMAL, "here").questions
    assert not {"instruction_role", "chat_template_arguments"} & set(questions.identity())
    assert {**questions.identity(), "instruction_role": "auto", "chat_template_arguments": {}} == questions.model_dump()
    changed = questions.model_copy(update={"chat_template_arguments": {"enable_thinking": False}})
    assert changed.identity()["chat_template_arguments"] == {"enable_thinking": False}


def test_a_setting_that_is_gone_is_accepted_with_the_value_of_finished_runs_and_stays_in_their_fingerprint() -> None:
    old = from_dict({**MINIMAL, "evaluation": {"compare_math_verify": False}}, "here").evaluation
    assert old == from_dict(MINIMAL, "here").evaluation
    assert old.identity() == old.model_dump() | {"compare_math_verify": False}
    with pytest.raises(UserError, match=r"unknown key evaluation\.compare_math_verify"):
        from_dict({**MINIMAL, "evaluation": {"compare_math_verify": True}}, "here")


def test_trackers_may_be_typed_as_words(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[model]\npath = "m"\n[questions]\ntrain = "q"\n')
    assert load(file, ["training.report_to=none"]).training.report_to == ("none",)
    assert load(file, ["training.report_to=wandb,mlflow"]).training.report_to == ("wandb", "mlflow")
    with pytest.raises(UserError, match=r"training\.report_to"):
        load(file, ["training.report_to=wand"])


def test_an_arm_changes_only_what_it_names() -> None:
    config = from_dict(
        {**MINIMAL, "arms": [{"name": "dpo", "set": {"training.loss": "dpo", "training.dpo.beta": 0.3}}]}, "here"
    )
    changed = config.for_arm(config.arms[0])
    assert (changed.training.loss, changed.training.beta, changed.sampling) == ("dpo", 0.3, config.sampling)
    assert changed.arms == (Arm(name="dpo", set={"training.loss": "dpo", "training.dpo.beta": 0.3}),)


def test_a_sweep_makes_an_arm_of_every_combination_named_by_what_it_sets() -> None:
    sweep = {"training.loss": ["sft", "dpo"], "weighting.exponent": [0, 1.5]}
    arms = sweep_arms(from_dict(MINIMAL | {"sweep": sweep}, "test")).arms
    assert [arm.name for arm in arms] == [
        "loss=sft+exponent=0",
        "loss=sft+exponent=1.5",
        "loss=dpo+exponent=0",
        "loss=dpo+exponent=1.5",
    ]
    assert arms[3].set == {"training.loss": "dpo", "weighting.exponent": 1.5}
    with pytest.raises(UserError, match="nothing to sweep"):
        sweep_arms(from_dict(MINIMAL, "test"))
    with pytest.raises(UserError, match="arms share samples"):
        sweep_arms(from_dict(MINIMAL | {"sweep": {"sampling.num_samples": [1, 2]}}, "test"))


def test_a_reproduction_leaves_out_what_its_config_does_not_want() -> None:
    wanted = {"losses": ["sft", "dpo"], "exponents": [], "ablation_exponents": [1], "measures": ["inaccuracy"]}
    arms = paper_arms(from_dict(MINIMAL | {"reproduce": wanted | {"local_weights": False}}, "test")).arms
    assert [arm.name for arm in arms] == ["sft-vanilla", "sft-east", "dpo-vanilla", "dpo-east", "sft-inaccuracy-a1"]
