"""What the package says is seen in a plain script, once, and can be turned off."""

from __future__ import annotations

import contextlib
import io
import logging

import pytest

from scvi_tahoe._messages import show_messages


@pytest.fixture
def logger():
    """A logger whose messages are shown."""
    name = "scvi_tahoe_messages"
    show_messages(name)
    show_messages(name)
    logger = logging.getLogger(name)
    yield logger
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def nothing_configured(monkeypatch):
    """To be called in a test: pytest gives each of its phases handlers of its own."""
    return lambda: monkeypatch.setattr(logging.getLogger(), "handlers", [])


def test_messages_are_written_to_the_standard_error_once(logger, capsys, nothing_configured):
    nothing_configured()
    logging.getLogger(f"{logger.name}.part").info("kept the best")
    logger.debug("a detail")
    assert capsys.readouterr() == ("", "kept the best\n")


def test_a_program_with_handlers_of_its_own_gets_them_there(logger, capsys, monkeypatch):
    records = []
    own = logging.Handler()
    monkeypatch.setattr(own, "emit", records.append)
    monkeypatch.setattr(logging.getLogger(), "handlers", [own])
    logger.info("kept the best")
    assert capsys.readouterr().err == ""
    assert [record.getMessage() for record in records] == ["kept the best"]


def test_a_level_of_ones_own_stays(logger, capsys, nothing_configured):
    nothing_configured()
    logger.setLevel(logging.WARNING)
    show_messages(logger.name)
    logger.info("kept the best")
    logger.warning("no step improved it")
    assert capsys.readouterr().err == "no step improved it\n"


def test_of_several_processes_the_first_speaks_and_all_warn(logger, capsys, monkeypatch, nothing_configured):
    nothing_configured()
    monkeypatch.setenv("LOCAL_RANK", "1")
    logger.info("kept the best")
    logger.warning("out of memory")
    assert capsys.readouterr().err == "out of memory\n"


def test_a_standard_error_that_was_closed_meanwhile_is_let_go(logger, capsys, nothing_configured):
    nothing_configured()
    with io.StringIO() as closed_later, contextlib.redirect_stderr(closed_later):
        logger.warning("a first warning")
    logger.warning("a second warning")
    assert capsys.readouterr().err == "a second warning\n"
