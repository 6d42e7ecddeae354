"""The command line: `python -m flows reproduce chex fedformer --jobs 2`."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from flows.errors import FlowError, UsageError
from flows.server import check_server, load_prefect, server_named, settle_environment


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        """Wrong arguments."""
        raise UsageError(message)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 on")
    return int(text)


def arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(prog="python -m flows", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    reproduce = commands.add_parser("reproduce", help="run what is out of date, stages side by side")
    reproduce.add_argument(
        "papers", nargs="*", help="stages of dvc.yaml, such as chex; all when none is named"
    )
    reproduce.add_argument(
        "--jobs", "-j", type=positive, help="the most stages at once (the machine's cores)"
    )
    reproduce.add_argument("--force", "-f", action="store_true", help="run what is up to date as well")
    reproduce.add_argument("--dry", action="store_true", help="only say what would run, and why")
    reproduce.add_argument("--timeout", metavar="TIME", help="for stages whose meta has none, such as 30m")
    reproduce.add_argument(
        "-S", "--set-param", metavar="KEY=VALUES", action="append", default=[], dest="overrides",
        help="run as a DVC experiment, several for several values: chex.prune.flops=0.3,0.4",
    )  # fmt: skip
    reproduce.add_argument(
        "--workers",
        "-w",
        action="store_true",
        help="run stages, or experiments, on the workers of the pools cpu and gpu",
    )
    worker = commands.add_parser("worker", help="take stages from a work pool and run them in this clone")
    worker.add_argument("pool", choices=("cpu", "gpu"))
    worker.add_argument(
        "--queue", choices=("stages", "default"), default="stages", help="default: whole papers"
    )
    worker.add_argument(
        "--limit", type=positive, default=len(os.sched_getaffinity(0)), help="the most at once"
    )
    serve = commands.add_parser("serve", help="Prefect, MLflow and a worker on 127.0.0.1")
    serve.add_argument("--prefect-port", type=positive, default=4200)
    serve.add_argument("--mlflow-port", type=positive, default=5000)
    return parser.parse_args(argv)


def serve(options: argparse.Namespace) -> int:
    """Run the servers and a worker."""
    from flows.serve import serve as run

    check_folder()
    return run(options.prefect_port, options.mlflow_port, lambda line: print(line, flush=True))


def worker(options: argparse.Namespace) -> int:
    """Be a worker."""
    check_folder()
    settle_environment(Path())
    if not server_named():
        raise UsageError(
            "PREFECT_API_URL names no Prefect server, and `python -m flows serve` does not run here"
        )
    check_server()
    from flows.worker import run_worker

    return run_worker(options.pool, options.queue, options.limit, say)


def say(line: str) -> None:
    """Tell the user what goes on."""
    print(line, file=sys.stderr, flush=True)


def check_folder() -> None:
    """Flows work in the top folder of a DVC project."""
    if not Path(".dvc").is_dir():
        raise UsageError("this is not the top folder of a DVC project")


def reproduce(options: argparse.Namespace) -> int:
    """Run a flow in this process."""
    from flows.plan import SECONDS, amount

    timeout = None
    if options.timeout and not (timeout := amount(options.timeout, SECONDS)):
        raise UsageError(f"--timeout: '{options.timeout}' is not a time such as 90s, 30m or 8h")
    check_folder()
    settle_environment(Path())
    if options.workers and not server_named():
        raise UsageError("--workers: PREFECT_API_URL names no Prefect server, and none is served here")
    if options.dry:
        from flows.project import Project

        print(Project(say).plan(options.papers, options.force).describe() or "everything is up to date")
        return 0
    run = run_experiments if options.overrides else run_flow
    good, message = run(options, options.jobs or len(os.sched_getaffinity(0)), timeout)
    print(message, file=sys.stdout if good else sys.stderr, flush=True)
    return 0 if good else 1


def run_flow(options: argparse.Namespace, jobs: int, timeout: float | None) -> tuple[bool, str]:
    """Run the flow; returns whether all went well, and how it went."""
    from flows.engine import open_session

    with open_session(options.papers, jobs, say, options.force, timeout) as session:
        if not session.plan.to_run and not server_named():
            return True, f"everything is up to date ({len(session.plan.steps)} stages)"
        if options.workers:
            from flows.away import send_away

            send_away(session)
        loading = load_prefect("flows.reproduce")
        if not options.workers:
            session.begin(until=loading.done)  # stages need not wait for Prefect
        loading.result().run_session(session)
    return session.succeeded, session.summary()


def run_experiments(options: argparse.Namespace, jobs: int, timeout: float | None) -> tuple[bool, str]:
    """Run DVC experiments; returns whether all went well, and how it went."""
    from flows.experiments import combinations

    combinations(options.overrides)  # wrong ones are found before anything runs
    sweep = load_prefect("flows.sweep").result()
    return sweep.run_experiments(options.papers, options.overrides, jobs, options.force, options.workers, say)


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # so that what is running is ended
    try:
        options = arguments(sys.argv[1:] if argv is None else argv)
        return {"reproduce": reproduce, "serve": serve, "worker": worker}[options.command](options)
    except FlowError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("cancelled", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
