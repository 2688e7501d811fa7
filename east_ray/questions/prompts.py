"""Prompts: the model's chat template over the instruction and the question, as text and token ids."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from east_ray.config.sections import QuestionsConfig
from east_ray.records import QUESTIONS, UserError, prompt_hash

logger = logging.getLogger(__name__)

PROBE = "What is 2 + 2?"


@dataclass(frozen=True)
class Question:
    """A question with its bare reference answer; `where` is its file and line, for errors."""

    question_id: str
    question: str
    reference: str
    level: str | None
    subject: str | None
    where: str


class Prompts:
    """Renders questions. `role` is the turn that holds the instruction: "system", "user", or None without instruction.

    UserError when the template cannot show what it is given, as a probe question tells: jinja ignores what it does not
    know, and templates without a system turn raise, or drop it.
    """

    def __init__(self, tokenizer: Any, questions: QuestionsConfig) -> None:
        self._tokenizer, self._instruction = tokenizer, questions.system_prompt or ""
        self._arguments = dict(questions.chat_template_arguments)
        template = tokenizer.get_chat_template()
        if unknown := [name for name in self._arguments if name not in template]:
            raise UserError(
                f"questions.chat_template_arguments: the chat template does not mention {', '.join(unknown)}; see the "
                f"model card for the names it has"
            )
        wanted = questions.instruction_role
        self.role: str | None = None if not self._instruction else "user" if wanted == "user" else "system"
        trouble = self._trouble()
        if trouble and self.role == "system" and wanted == "auto":
            logger.info("the chat template %s: the instruction goes into the user's turn", trouble)
            self.role = "user"
            trouble = self._trouble()
        if trouble:
            remedy = "set questions.instruction_role=auto" if wanted == "system" else "repair it beside the tokenizer"
            raise UserError(f"the model's chat template {trouble}; {remedy}")

    def text(self, question: str, *, add_generation_prompt: bool = True) -> str:
        """The rendered prompt of one question."""
        messages = [{"role": "user", "content": question}]
        if self.role == "user":
            messages = [{"role": "user", "content": f"{self._instruction}\n\n{question}"}]
        elif self.role == "system":
            messages.insert(0, {"role": "system", "content": self._instruction})
        return self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **self._arguments
        )

    def token_ids(self, prompt: str) -> list[int]:
        """Of a rendered prompt, which holds its special tokens already."""
        return self._tokenizer(prompt, add_special_tokens=False)["input_ids"]

    def render(self, questions: Iterable[Question]) -> pa.Table:
        """Questions with their prompts as text and token ids (records.QUESTIONS)."""
        rows = []
        for q in questions:
            prompt = self.text(q.question)
            ids = self.token_ids(prompt)
            rows.append({**vars(q), "prompt": prompt, "prompt_token_ids": ids, "prompt_hash": prompt_hash(ids)})
        return pa.Table.from_pylist(rows, schema=QUESTIONS)

    def _trouble(self) -> str | None:
        """The template's fault with the present role; None when instruction and question both show."""
        try:
            text = self.text(PROBE)
        except Exception as error:  # a template raises whatever it likes
            return f"raises {str(error) or type(error).__name__!r} on {_turns(self.role)}"
        if PROBE not in text:
            return "drops the question"
        return None if self._instruction.strip() in text else f"drops {_turns(self.role)}"


def _turns(role: str | None) -> str:
    return "a system turn" if role == "system" else "a user turn"
