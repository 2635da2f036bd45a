"""Programs that show the log at work; none of them is part of the package."""
