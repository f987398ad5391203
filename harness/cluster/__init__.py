"""Where the workers live: a private universe of network namespaces, or a scripted stand-in for tests."""
