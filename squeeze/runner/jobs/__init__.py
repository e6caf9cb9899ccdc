"""Run processes: say what a job is, start it, keep it within limits, judge how it ended.

The executor writes a job file and hands it to the launcher, which keeps one worker alive; the worker starts a process
per job inside its limits and tells how it ended; the outcome is a failure with a reason, or none. The display shows
what goes on.
"""
