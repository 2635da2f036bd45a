"""Programs that show the log at work, and small applications; none is part of the package."""
