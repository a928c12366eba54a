"""Messages of errors caused by user input."""

from minigpt.common.errors import MAX_LENGTH, UserError


def test_user_error_is_one_printable_line():
    message = str(UserError("a.csv: no column '\x1b[2J\r\n\u2028x'; rename it"))
    assert message == "a.csv: no column '\\x1b[2J\\r  x'; rename it"
    assert message.isprintable()


def test_long_user_error_keeps_problem_and_advice():
    message = str(UserError(f"a.csv: no column {'x' * 10**5}; rename it"))
    assert len(message) == MAX_LENGTH
    assert message.startswith("a.csv: no column x")
    assert message.endswith("x; rename it")
