"""What a file may say: links, workload, methods, read and checked."""
