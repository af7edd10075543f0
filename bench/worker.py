"""A measurement in a process of its own: a job as JSON on stdin, its result as the last line of stdout."""

import contextlib
import json
import resource
import sys
import traceback
import warnings


def main() -> int:
    job = json.load(sys.stdin)
    allow_open_files()
    warnings.simplefilter("ignore")
    try:
        result = measure(job)
    except ImportError as reason:
        result = {"unavailable": str(reason)}
    except Exception as error:
        traceback.print_exc()
        result = {"failed": f"{type(error).__name__}: {error}"}
    print("\n" + json.dumps(result), flush=True)
    return 0


def allow_open_files() -> None:
    """Engines that hand tensors to another process need some open files for each of them."""
    most = max(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1 << 18)
    with contextlib.suppress(ValueError, OSError):  # an ordinary user may not have more than he has
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def measure(job: dict) -> dict:
    if job["what"] == "limits":
        import limits

        return limits.measure(job)
    import measure_load
    import measure_save
    import measure_training

    functions = {
        "save": measure_save.measure,
        "write": measure_save.write,
        "load": measure_load.measure,
        "train": measure_training.measure,
    }
    return functions[job["what"]](job)


if __name__ == "__main__":  # engines that spawn processes import this file again
    sys.exit(main())
