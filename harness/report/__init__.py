"""Results as people read them: pages, tables, figures. Nothing here decides."""
