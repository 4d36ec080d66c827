"""Running a graph: one `Engine` protocol, one file a runtime."""
