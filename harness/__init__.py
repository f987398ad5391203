"""pacbench's harness: from a scenario over a shaped and verified cluster to a report."""
