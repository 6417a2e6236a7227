"""From a validated file to its outcome: check, plan, run, conclude."""
