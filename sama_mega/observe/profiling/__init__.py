"""Where a step's time goes: named ranges, a trace, and the table of it by this project's operations."""
