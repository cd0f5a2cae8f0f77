"""Long work as tasks: a cache of what is done, and executors that do the rest in processes or on a Ray cluster.

A newcomer's trap: a task's key is all that its result depends on; what is left out of it is taken from the cache unseen.
"""

from .cells import CellStore, Failure, Task
from .executors import Executor, ProcessExecutor, RayExecutor, Work

__all__ = ["CellStore", "Executor", "Failure", "ProcessExecutor", "RayExecutor", "Task", "Work"]
