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


def speak(logger):
    """Say a little at each level; pytest gives each of its phases handlers of its own, which are set aside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])
        logger.debug("a detail")
        logging.getLogger(f"{logger.name}.part").info("kept the best")
        logger.warning("out of memory")


def test_messages_are_written_to_the_standard_error_once(logger, capsys):
    speak(logger)
    assert capsys.readouterr() == ("", "kept the best\nout of memory\n")


def test_a_program_with_handlers_of_its_own_gets_them_there(logger, capsys, caplog):
    logger.info("kept the best")
    assert capsys.readouterr().err == ""
    assert caplog.messages == ["kept the best"]


def test_a_level_of_ones_own_stays(logger, capsys):
    logger.setLevel(logging.WARNING)
    show_messages(logger.name)
    speak(logger)
    assert capsys.readouterr().err == "out of memory\n"


def test_of_several_processes_the_first_speaks_and_all_warn(logger, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    speak(logger)
    assert capsys.readouterr().err == "out of memory\n"


def test_a_standard_error_that_was_closed_meanwhile_is_let_go(logger, capsys):
    with io.StringIO() as closed_later, contextlib.redirect_stderr(closed_later):
        speak(logger)
    speak(logger)
    assert capsys.readouterr().err == "kept the best\nout of memory\n"
