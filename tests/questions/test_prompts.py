"""The prompt: which turn holds the instruction, and what the chat template is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from east_ray.config.sections import ModelConfig, QuestionsConfig
from east_ray.models import load_tokenizer
from east_ray.questions.prompts import Prompts
from east_ray.records import UserError

TURNS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
OPENING = "{% if add_generation_prompt %}[assistant]{% endif %}"
RAISING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DROPPING = TURNS.replace("in messages", "in messages if m['role'] != 'system'")


@pytest.fixture
def prompts(tiny_model: Path) -> Any:
    """Prompts of the bundled tokenizer with another chat template."""

    def make(template: str, **settings: Any) -> Prompts:
        tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model)))
        tokenizer.chat_template = template
        return Prompts(tokenizer, QuestionsConfig(**{"train": "-", "system_prompt": "Box it."} | settings))

    return make


def test_a_system_turn_holds_the_instruction_where_the_template_has_one(prompts: Any) -> None:
    made = prompts(TURNS + OPENING)
    assert (made.role, made.text("2+2?")) == ("system", "[system]Box it.[user]2+2?[assistant]")


@pytest.mark.parametrize("template", [RAISING + TURNS, DROPPING], ids=["raises", "drops"])
def test_the_users_turn_holds_the_instruction_where_the_template_has_no_system_turn(
    prompts: Any, template: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    made = prompts(template + OPENING)
    assert (made.role, made.text("2+2?")) == ("user", "[user]Box it.\n\n2+2?[assistant]")
    assert "the instruction goes into the user's turn" in caplog.text
    with pytest.raises(UserError, match=r"a system turn; set questions\.instruction_role=auto"):
        prompts(template + OPENING, instruction_role="system")


def test_the_users_turn_can_be_asked_for(prompts: Any) -> None:
    assert prompts(TURNS, instruction_role="user").text("2+2?") == "[user]Box it.\n\n2+2?"


@pytest.mark.parametrize("instruction", ["", None])
def test_without_instruction_no_system_turn_is_made(prompts: Any, instruction: str | None) -> None:
    made = prompts(RAISING + TURNS, system_prompt=instruction)
    assert (made.role, made.text("2+2?")) == (None, "[user]2+2?")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('Tools only') }}", "raises 'Tools only'"),
        (TURNS.replace("m['content']", "'...'"), "drops the question"),
    ],
)
def test_a_template_that_shows_no_question_is_refused(prompts: Any, template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prompts(template)


def test_arguments_reach_the_template_and_unknown_ones_are_refused(prompts: Any) -> None:
    template = TURNS + "{% if enable_thinking is false %}<think></think>{% endif %}"
    assert prompts(template).text("a") == "[system]Box it.[user]a"
    without = prompts(template, chat_template_arguments={"enable_thinking": False})
    assert without.text("a") == "[system]Box it.[user]a<think></think>"
    with pytest.raises(UserError, match="does not mention enable_thinkin;"):
        prompts(template.replace("enable_thinking", "thinking"), chat_template_arguments={"enable_thinkin": False})
