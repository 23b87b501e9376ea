"""Runs in processes that are cheap to start, and can be killed."""

import multiprocessing
import os
import signal
import sys


def start(arguments):
    """`corank train` in a process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["corank.cli.training", "corank.training.run", "transformers"])
    process = context.Process(target=_train, args=(list(map(str, arguments)),))
    process.start()
    return process


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def _train(arguments):
    from corank.cli import main

    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.exit(main(arguments))
