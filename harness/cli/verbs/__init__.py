"""The verbs, one file each. Whatever is heavy is imported by the verb that needs it, when it runs."""
