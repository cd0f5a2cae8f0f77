"""The command line: one file a command, nothing in it but arguments and printing."""
