"""The real path between two hosts: one serves, the other measures, and a link is made of what it finds."""
