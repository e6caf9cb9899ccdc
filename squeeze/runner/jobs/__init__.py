"""The processes of a run: what a job is, who starts it, what keeps it within limits, how its end is judged.

The executor writes a job file and hands it to the launcher, which keeps one worker alive; the worker starts a process
per job inside its limits and tells how it ended; the outcome is a failure with a reason, or none. The display shows
what goes on.
"""
