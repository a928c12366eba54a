"""Entry point of minigpt-cli; Ctrl-C gives no traceback, even while packages are imported."""

from minigpt.common.entry_point import exit_on_interrupt


def main() -> None:
    exit_on_interrupt()
    from minigpt.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
