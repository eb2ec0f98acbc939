"""What holds for every test."""

import signal

# A shell starts background jobs with these ignored, and every program that a test
# starts would inherit that: Ctrl-C would reach none of them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
