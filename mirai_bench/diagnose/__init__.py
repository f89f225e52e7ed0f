"""Why an arm helps: diagnostics of trained runs."""
