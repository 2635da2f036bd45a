"""What a process finds outside of the application's code: settings, and a log from the database.

With the command line and `Keyring.from_env` it is the only code that reads the environment.
"""
