"""The console command, and python -m selfdistill: Ctrl-C while the command line itself loads is exit code 130 and no word."""

import os

try:
    import signal
except KeyboardInterrupt:
    os._exit(130)


def main() -> None:
    """The command line on `sys.argv`. Raised amid imports, an interrupt would be a traceback, or lost: until they are done it ends the process itself."""
    own = signal.getsignal(signal.SIGINT)
    # a shell's background jobs and nohup ignore it, which stays
    if own is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from selfdistill.cli import main as run

    signal.signal(signal.SIGINT, own)
    run()


if __name__ == "__main__":
    main()
