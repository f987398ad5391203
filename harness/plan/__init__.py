"""From a scenario to ordered trials, and what is known of them before they run."""
