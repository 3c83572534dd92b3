"""Cannot be imported."""

raise RuntimeError("on purpose")
