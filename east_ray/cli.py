"""The `east-ray` command: parse, set up logging, call. All else is imported when it is called for, so `--help` is instant."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from east_ray.config.load import Config
    from east_ray.records import UserError
    from east_ray.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

STEP_COMMANDS = {
    "questions": "read the questions and render their prompts",
    "sample": "sample n completions per question with vLLM",
    "verify": "extract, judge and cluster the answers",
    "weigh": "turn the clusters' entropy into weights with one global normaliser",
    "select": "choose the completions to train on",
    "train": "fine-tune every arm with its weights",
    "validate": "measure every arm on the held-out training questions",
    "evaluate": "measure every arm on the test questions",
}

COMMANDS = ("run", "sweep", "reproduce")  # of the whole loop

# Errors of a disk, whichever library met them, and their remedies.
DISK = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space, or raise the limit"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable, or choose another run.dir"),
    errno.EIO: "check the disk",
}

LOST_NODE = "Owner's node has crashed"  # says Ray of actors whose driver, which is this command, has lost its node


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 found something wrong, 2 the user can fix it, 130 or 143 stopped."""
    arguments = _parser().parse_args(argv)
    os.environ.setdefault(
        "ARROW_DEFAULT_MEMORY_POOL", "system"
    )  # before pyarrow comes, whose own pool holds 4 MiB more
    from east_ray.console import set_up_logging

    set_up_logging(arguments.verbose)
    try:
        return arguments.call(arguments) or 0
    except (KeyboardInterrupt, SystemExit) as stopped:  # Ray makes a SystemExit of SIGTERM
        logger.warning("Stopped. What is finished is kept: the same command continues from there.")
        return _end(130 if isinstance(stopped, KeyboardInterrupt) else 143)
    except Exception as error:
        fixable = _user_error(error)
        if fixable is None or arguments.verbose:
            raise
        print(f"east-ray: {fixable}", file=sys.stderr)  # noqa: T201
        return _end(2)


def _end(code: int) -> int:
    """Return the exit code; while trainings run, end this process at once: Python would crash under their threads.

    `ray.shutdown` would race with those threads: Ray ends a process with 1 whose raylet is gone. The kernel ends the raylet
    with this process, but not in time what the raylet has started.
    """
    from east_ray.console import TRAINING_THREAD

    if any(thread.name == TRAINING_THREAD for thread in threading.enumerate()):
        import psutil

        own = psutil.Process()
        for process in own.children(recursive=True):
            with suppress(psutil.Error):
                if process.ppid() != own.pid:
                    process.kill()
        logging.shutdown()
        os._exit(code)
    return code


def _user_error(error: BaseException | None) -> UserError | None:
    """The user's error behind an exception, if there is one: Ray wraps what its workers raise."""
    from east_ray.records import UserError

    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None)
        for candidate in (cause, error if cause is None else None):
            if isinstance(candidate, UserError):
                return candidate
            if isinstance(candidate, OSError) and candidate.errno in DISK:
                return UserError(f"{candidate}; {DISK[candidate.errno]}, then run the same command again: it continues")
            if type(candidate).__name__ == "ActorDiedError" and LOST_NODE in str(candidate):
                return UserError(
                    "Ray's own process on this machine (raylet) ended, as when memory ran short; the same command continues"
                )
        error = cause if isinstance(cause, BaseException) else error.__cause__
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="east-ray",
        description="Entropy-based adaptive weighting for self-training (EAST) on Ray, vLLM, TRL and DeepSpeed.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, call: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        verbose_help = "also show the libraries' logs, and full tracebacks"
        sub.add_argument("-v", "--verbose", action="store_true", help=verbose_help)
        sub.set_defaults(call=call)
        return sub

    def with_config(name: str, text: str, call: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
        sub = command(name, text, call)
        sub.add_argument("config", help="TOML file, e.g. jobs/configs/tiny.toml")
        set_help = "change a setting, e.g. training.loss=dpo"
        sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=set_help)
        return sub

    run = with_config("run", "run the whole loop, or continue it where it stopped; a finished run is a no-op", _run)
    restart_help = "discard this step and all after it: " + ", ".join(STEP_COMMANDS)
    run.add_argument("--restart-from", metavar="STEP", help=restart_help)
    for name, text in STEP_COMMANDS.items():
        with_config(name, f"run one step: {text}", _run)
    text = "import completions sampled elsewhere, in place of `sample`"
    imports = with_config("import-samples", text, _import_samples)
    imports.add_argument("file", help="JSONL, JSONL.gz or Parquet with an id or question and its completions per line")
    with_config("sweep", "train and compare many arms on one set of samples", _run)
    with_config("reproduce", "train every arm of one column of the paper's Table 1, and of its figures", _run)
    with_config("config", "print the resolved configuration", _config)
    planned = with_config("plan", "estimate tokens, memory, time and price before spending them", _plan)
    pool_help = "e.g. 8xH100 (devices: see preflight/prices.toml); may be repeated"
    planned.add_argument("--pool", action="append", default=[], metavar="COUNTxDEVICE", help=pool_help)
    planned.add_argument("--for", dest="planned", choices=COMMANDS, default="run", help="which command to plan")
    doctor = command("doctor", "check this machine and a config, and say how to fix what is wrong", _doctor)
    doctor.add_argument("config", nargs="?", help="TOML file")
    doctor.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    probe_help = "also run the engine, training and grading once, and say what they really do"
    doctor.add_argument("--probe", action="store_true", help=probe_help)
    text = "check that what was trained is what was sampled, and show how much the weights depend on clustering"
    of_run = [
        command("report", "write the HTML report of a run directory", _report),
        command("audit", text, _audit),
        command(
            "sufficiency", "show whether fewer samples per question would have given the same weights", _sufficiency
        ),
    ]
    compared = command("compare", "compare two evaluated models or runs, question by question", _compare)
    for side in ("a", "b"):
        compared.add_argument(side, help="run directory, or one model's inside it, e.g. RUN/round-00/arms/east")
    export = command("export", "copy a round's training examples to a directory as a Hugging Face dataset", _export)
    for sub in (*of_run, export):
        sub.add_argument("run", help="run directory, local or s3:// or gs://")
    export.add_argument("target", help="a new or empty local directory")
    export.add_argument("--round", default="round-00", help="where in the run, e.g. round-01/arms/east")
    return parser


def _load(arguments: argparse.Namespace) -> Config:
    from east_ray.config.load import load

    return load(arguments.config, arguments.set)


def _expand(config: Config, command: str) -> Config:
    """The config with the arms that a command trains."""
    from east_ray.arms import paper_arms, sweep_arms

    return {"sweep": sweep_arms, "reproduce": paper_arms}.get(command, lambda config: config)(config)


def _run(arguments: argparse.Namespace) -> int:
    from east_ray.launch import run_and_show

    only = arguments.command if arguments.command in STEP_COMMANDS else None
    config = _expand(_load(arguments), arguments.command)
    return run_and_show(config, only=only, restart=getattr(arguments, "restart_from", None))


def _import_samples(arguments: argparse.Namespace) -> None:
    from east_ray.launch import import_file

    import_file(_load(arguments), arguments.file)


def _config(arguments: argparse.Namespace) -> None:
    print(json.dumps(_load(arguments).model_dump(mode="json"), indent=2))  # noqa: T201


def _plan(arguments: argparse.Namespace) -> None:
    from east_ray.preflight.estimate import estimate
    from east_ray.preflight.plan import render

    print(render(estimate(_expand(_load(arguments), arguments.planned), arguments.pool)))  # noqa: T201


def _doctor(arguments: argparse.Namespace) -> int:
    from east_ray.preflight.doctor import diagnose, render

    config = _load(arguments) if arguments.config else None
    findings = diagnose(config)
    if arguments.probe:
        from east_ray.preflight.probe import probe

        findings += probe(config)
    print(render(findings))  # noqa: T201
    return int(any(finding.status == "fail" for finding in findings))


def _report(arguments: argparse.Namespace) -> None:
    from east_ray.report.page import write_report

    print(write_report(_existing_run(arguments.run)))  # noqa: T201


def _compare(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from east_ray.evaluation.across_runs import render_comparison

    Console().print(render_comparison(arguments.a, arguments.b))


def _audit(arguments: argparse.Namespace) -> None:
    from east_ray.analysis.audit import audit
    from east_ray.analysis.identity import identity

    found = identity(run := _existing_run(arguments.run))
    print(f"{found.render()}\n{audit(run).render()}")  # noqa: T201
    found.check()


def _sufficiency(arguments: argparse.Namespace) -> None:
    from east_ray.analysis.sufficiency import sufficiency

    print(sufficiency(_existing_run(arguments.run)).render())  # noqa: T201


def _export(arguments: argparse.Namespace) -> None:
    from east_ray.examples.export import export_dataset

    print(export_dataset(_existing_run(arguments.run), arguments.round, arguments.target))  # noqa: T201


def _existing_run(uri: str) -> RunDirectory:
    from east_ray.runs.directory import RunDirectory

    run = RunDirectory(uri)
    run.check_reachable()
    run.config()
    return run
